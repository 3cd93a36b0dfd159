//! System calls that a confined program is refused, with `EPERM`.

use std::collections::BTreeMap;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::policy::Stage;

/// Refused to everything that runs confined.
const REFUSED: &[c_long] = &[
    // No network, and no way to a daemon's socket.
    libc::SYS_socket,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Killing the group must reach every process.
    libc::SYS_setsid,
    libc::SYS_setpgid,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_process_madvise,
    // Memory that belongs to no process is not seen by the supervisor.
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    // Files by other ways than their path.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Older Landlock does not see these two.
    libc::SYS_truncate,
    libc::SYS_openat2,
    // Name spaces, mounts, keys, the machine.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

/// Refused to what the model wrote: Landlock lets a file's owner change these anywhere.
const METADATA: &[c_long] = &[
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    // fchmodat2, which `libc` does not name everywhere; one number on all architectures.
    452,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];

/// The same under names that newer architectures have not.
#[cfg(target_arch = "x86_64")]
const METADATA_OF_OLD: &[c_long] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const METADATA_OF_OLD: &[c_long] = &[];

/// Signals by another way than `kill`.
const SIGNALS: &[c_long] = &[
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_tkill,
];

/// Bit of the system calls of a second 64-bit ABI of x86, which some kernels have.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;

/// The filter for process `own`, compiled.
pub(super) fn program(stage: Stage, own: u32) -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<c_long, Vec<SeccompRule>> = BTreeMap::new();
    rules.extend(REFUSED.iter().map(|&call| (call, Vec::new())));
    for (call, argument) in open_calls() {
        rules.insert(call, vec![truncating_reader(argument)?]);
    }
    if stage == Stage::Run {
        let refused = METADATA.iter().chain(METADATA_OF_OLD).chain(SIGNALS);
        rules.extend(refused.map(|&call| (call, Vec::new())));
        // Itself alone: `abort` signals its own process.
        for call in [libc::SYS_kill, libc::SYS_tgkill] {
            let other = condition(0, SeccompCmpOp::Ne, u64::from(own))?;
            rules.insert(call, vec![SeccompRule::new(vec![other])?]);
        }
    }
    #[cfg(target_arch = "x86_64")]
    for (call, conditions) in rules.clone() {
        rules.insert(call | X32, conditions);
    }
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into()?,
    )?;
    filter.try_into()
}

/// Calls that open a file, and which argument has the flags.
fn open_calls() -> Vec<(c_long, u8)> {
    #[cfg(target_arch = "x86_64")]
    return vec![(libc::SYS_openat, 2), (libc::SYS_open, 1)];
    #[cfg(not(target_arch = "x86_64"))]
    vec![(libc::SYS_openat, 2)]
}

/// Opened to read, cut all the same: older Landlock lets it pass.
fn truncating_reader(argument: u8) -> Result<SeccompRule, seccompiler::BackendError> {
    let mask = (libc::O_TRUNC | libc::O_ACCMODE) as u64;
    let flags = SeccompCmpOp::MaskedEq(mask);
    SeccompRule::new(vec![condition(argument, flags, libc::O_TRUNC as u64)?])
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

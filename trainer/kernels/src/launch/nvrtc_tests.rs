//! Every kernel that a GPU may be given compiles for NVIDIA's architectures, without a GPU.
//!
//! NVRTC comes from a Python package (`scripts/fetch_test_material.sh`); where it could not be had,
//! the test says so and checks nothing.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;

use burn::tensor::{DType, Device, Tensor};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use super::attention::HEAD_DIMS;
use super::{
    Argument, Codes, Element, Extent, Launch, Machine, Operands, Operation, Product, Program,
};
use crate::host;

/// Shared memory of a block that need not be asked for.
const SHARED_BYTES: usize = 48 << 10;

/// Notes the programs that it is asked to run, and runs none.
#[derive(Default)]
struct Recorder {
    threads: RefCell<HashSet<(Program, u32)>>,
}

impl Machine for Recorder {
    type Buffer = DType;

    fn read<const D: usize>(&self, tensor: &Tensor<D>) -> Option<DType> {
        host::on_host(tensor).then(|| tensor.dtype())
    }

    fn own<const D: usize>(&self, tensor: Tensor<D>) -> Option<DType> {
        self.read(&tensor)
    }

    fn empty(&self, _: &DType, dtype: DType, _: usize) -> DType {
        dtype
    }

    fn upload(&self, _: &DType, _: &[u8]) -> DType {
        DType::U8
    }

    fn tensor<const D: usize>(&self, buffer: DType, shape: [usize; D]) -> Tensor<D> {
        Tensor::zeros(shape, (&Device::flex(), buffer))
    }

    fn download(&self, _: &DType) -> Vec<u8> {
        Vec::new()
    }

    fn launch(&self, launch: &Launch, _: &[Argument<'_, DType>]) {
        self.threads.borrow_mut().insert((launch.program.clone(), launch.threads));
    }

    fn product(&self, _: &Product, _: &Operands<'_, DType>) -> bool {
        true
    }
}

/// Programs of all operations, and the threads of a block of each.
fn programs() -> Vec<(Program, u32)> {
    let recorder = Recorder::default();
    let widths = HEAD_DIMS.into_iter().map(Operation::Attention);
    for operation in Operation::WITHOUT_HEADS.into_iter().chain(widths) {
        super::check(&recorder, &Device::flex(), operation, Extent::Emulator).unwrap();
    }
    for stored in [2, 3, 6, 7, 8, 12, 13, 14] {
        for element in [Element::F32, Element::Bf16] {
            let codes = Codes::Gguf { bytes: DType::U8, stored };
            super::expand(&recorder, &codes, [1, 256], element).unwrap();
        }
    }
    let mut programs: Vec<_> = recorder.threads.into_inner().into_iter().collect();
    programs.sort_by_key(|(program, _)| format!("{program:?}"));
    programs
}

type Status = c_int;
type Create = unsafe extern "C" fn(
    *mut *mut c_void,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> Status;
type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> Status;
type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> Status;
type Text = unsafe extern "C" fn(*mut c_void, *mut c_char) -> Status;

fn library() -> Option<Library> {
    let material = std::env::var_os("TUNESMITH_TEST_MATERIAL").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/test-material")),
        PathBuf::from,
    );
    let open = |name: &str| {
        // SAFETY: NVIDIA's compiler; its initialisers have no preconditions.
        unsafe {
            Library::open(Some(material.join("nvrtc").join(name)), RTLD_NOW | RTLD_GLOBAL).ok()
        }
    };
    // The compiler looks for its builtins by their bare name: they are there before it.
    std::mem::forget(open("libnvrtc-builtins.so.13.0")?);
    open("libnvrtc.so.13")
}

/// What the compiler says, with registers and shared memory of the kernel, and its PTX.
fn compile(library: &Library, program: &Program, architecture: &str) -> (String, String) {
    let source = CString::new(program.text()).unwrap();
    let options = [
        CString::new(format!("--gpu-architecture={architecture}")).unwrap(),
        c"--ptxas-options=-v".to_owned(),
    ];
    let pointers = options.each_ref().map(|option| option.as_ptr());
    let mut handle = std::ptr::null_mut();
    // SAFETY: the functions have these signatures; strings and the handle outlive the calls, and
    // buffers are as large as the library says.
    unsafe {
        let create = library.get::<Create>(c"nvrtcCreateProgram").unwrap();
        let null = std::ptr::null();
        assert_eq!(create(&raw mut handle, source.as_ptr(), c"k.cu".as_ptr(), 0, null, null), 0);
        let compile = library.get::<Compile>(c"nvrtcCompileProgram").unwrap();
        let status = compile(handle, 2, pointers.as_ptr());
        let text = |size: &CStr, get: &CStr| {
            let mut bytes = 0;
            assert_eq!(library.get::<Size>(size).unwrap()(handle, &raw mut bytes), 0);
            let mut buffer = vec![0_u8; bytes + 1];
            let pointer = buffer.as_mut_ptr().cast();
            assert_eq!(library.get::<Text>(get).unwrap()(handle, pointer), 0);
            CStr::from_bytes_until_nul(&buffer).unwrap().to_string_lossy().into_owned()
        };
        let log = text(c"nvrtcGetProgramLogSize", c"nvrtcGetProgramLog");
        assert_eq!(status, 0, "{program:?} for {architecture}:\n{log}");
        (log, text(c"nvrtcGetPTXSize", c"nvrtcGetPTX"))
    }
}

/// The number before `unit` in the compiler's words, the largest of several.
fn figure(log: &str, unit: &str) -> usize {
    let before = log.match_indices(unit).filter_map(|(at, _)| {
        log[..at].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    before.max().unwrap_or(0)
}

#[test]
fn figures_are_read_from_the_compilers_words() {
    let log = "0 bytes stack frame, 12 bytes spill stores\nUsed 168 registers, 49152 bytes smem";
    assert_eq!(figure(log, " registers"), 168);
    assert_eq!(figure(log, " bytes smem"), 49152);
    assert_eq!(figure(log, " bytes spill stores"), 12);
    assert_eq!(figure(log, " bytes lmem"), 0);
}

/// Both, but for the rarer widths of a head, whose compilation would take minutes.
fn architectures(program: &Program) -> &'static [&'static str] {
    let width = program.constants.iter().find(|(name, _)| *name == "HEAD_DIM");
    match width {
        Some((_, 64 | 128 | 256)) | None => &["sm_80", "sm_90a"],
        Some(_) => &["sm_80"],
    }
}

#[test]
#[expect(clippy::print_stderr, reason = "a test that checks nothing says so")]
fn all_kernels_compile_for_ampere_and_hopper() {
    let Some(library) = library() else {
        eprintln!("skipped: NVRTC is not in the test material (scripts/fetch_test_material.sh)");
        return;
    };
    for (program, threads) in programs() {
        for &architecture in architectures(&program) {
            let (log, ptx) = compile(&library, &program, architecture);
            let what = || format!("{program:?} for {architecture}: {log}");
            assert!(figure(&log, " bytes smem") <= SHARED_BYTES, "{}", what());
            // 64 Ki registers an SM: a block must fit, and spilling must stay a matter of a few.
            assert!(figure(&log, " registers") * threads as usize <= 65536, "{}", what());
            assert!(figure(&log, " bytes spill stores") <= 64, "{}", what());
            assert!(ptx.contains(&format!(".entry {}", program.entry)), "{}", what());
            let uses_tensor_cores = ptx.contains("mma.sync.aligned.m16n8k16");
            assert_eq!(uses_tensor_cores, program.file == super::File::Attention, "{}", what());
        }
    }
}

//! Kernels on the host: the same texts, compiled by the C++ compiler, one thread after the other.

use std::cell::RefCell;
use std::ffi::{c_int, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use burn::tensor::{DType, Device, Tensor, TensorData};
use libloading::{Library, Symbol};

use super::product::{Layout, Turn};
use super::{Access, Argument, Launch, Machine, Operands, Product, Program};
use crate::host;

/// Bytes behind each buffer that no kernel may touch.
const GUARD: usize = 64;

/// A machine whose threads run in an order of the caller's: 0 forwards, 1 backwards, others
/// shuffled.
pub(super) struct Emulator {
    pub(super) order: u32,
}

/// 16-byte aligned memory.
pub(super) struct Memory {
    dtype: DType,
    bytes: usize,
    words: RefCell<Vec<u128>>,
}

impl Memory {
    fn new(dtype: DType, bytes: &[u8]) -> Self {
        let mut words = vec![u128::MAX; (bytes.len() + GUARD).div_ceil(16)];
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { dtype, bytes: bytes.len(), words: RefCell::new(words) }
    }

    fn contents(&self) -> Vec<u8> {
        bytemuck::cast_slice::<u128, u8>(&self.words.borrow())[..self.bytes].to_vec()
    }

    fn values(&self) -> Vec<f32> {
        let bytes = self.contents();
        match self.dtype {
            DType::BF16 => {
                let halves = bytes.as_chunks::<2>().0.iter();
                halves.map(|&half| half::bf16::from_le_bytes(half).to_f32()).collect()
            }
            _ => bytes.as_chunks::<4>().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
        }
    }

    fn put(&self, values: &[f32]) {
        let bytes: Vec<u8> = match self.dtype {
            DType::BF16 => {
                values.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
            }
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        let mut words = self.words.borrow_mut();
        bytemuck::cast_slice_mut::<u128, u8>(&mut words)[..self.bytes].copy_from_slice(&bytes);
    }

    fn check_guard(&self) {
        let words = self.words.borrow();
        let guard = &bytemuck::cast_slice::<u128, u8>(&words)[self.bytes..];
        assert!(guard.iter().all(|&byte| byte == 0xff), "a kernel wrote behind its buffer");
    }
}

impl Machine for Emulator {
    type Buffer = Memory;

    fn read<const D: usize>(&self, tensor: &Tensor<D>) -> Option<Memory> {
        let flex = host::host(tensor)?;
        match flex.dtype() {
            DType::F32 => Some(Memory::new(DType::F32, bytemuck::cast_slice(host::read(&flex)))),
            DType::BF16 => {
                Some(Memory::new(DType::BF16, bytemuck::cast_slice(host::read_bf16(&flex))))
            }
            _ => None,
        }
    }

    fn own<const D: usize>(&self, tensor: Tensor<D>) -> Option<Memory> {
        self.read(&tensor)
    }

    fn empty(&self, _: &Memory, dtype: DType, elements: usize) -> Memory {
        let size = if dtype == DType::BF16 { 2 } else { 4 };
        Memory::new(dtype, &vec![0xff; elements * size])
    }

    fn upload(&self, _: &Memory, bytes: &[u8]) -> Memory {
        Memory::new(DType::U8, bytes)
    }

    fn tensor<const D: usize>(&self, buffer: Memory, shape: [usize; D]) -> Tensor<D> {
        let data = TensorData::from_bytes_vec(buffer.contents(), shape, buffer.dtype);
        Tensor::from_data(data, (&Device::flex(), buffer.dtype))
    }

    fn download(&self, buffer: &Memory) -> Vec<u8> {
        buffer.contents()
    }

    fn launch(&self, launch: &Launch, arguments: &[Argument<'_, Memory>]) {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        type Emulate = unsafe extern "C" fn(*const u32, u32, *const *const c_void, u32) -> c_int;
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let before: Vec<_> = arguments.iter().map(|(memory, _)| memory.contents()).collect();
        let mut pointers: Vec<*mut u128> =
            arguments.iter().map(|(memory, _)| memory.words.borrow_mut().as_mut_ptr()).collect();
        let words = launch.scalars.words();
        let mut places: Vec<*const c_void> = pointers
            .iter_mut()
            .map(|pointer| std::ptr::from_mut(pointer).cast_const().cast())
            .collect();
        places.push(words.as_ptr().cast());
        // SAFETY: the library was made from this program a moment ago; its door has this
        // signature, and the arguments are those of the kernel, as the tests are here to prove.
        let status = unsafe {
            let library = Library::new(compiled(&launch.program)).expect("the kernel loads");
            let door: Symbol<Emulate> = library.get(c"emulate").expect("the kernel has its door");
            door(launch.grid.as_ptr(), launch.threads, places.as_ptr(), self.order)
        };
        drop(guard);
        assert_eq!(status, 0, "threads wait for each other in {:?}", launch.program);
        for ((memory, access), before) in arguments.iter().zip(before) {
            memory.check_guard();
            let kept = *access != Access::Read || memory.contents() == before;
            assert!(kept, "{:?} wrote into an input", launch.program);
        }
    }

    /// The plan as cuBLASLt would read it, one sum after the other.
    fn product(&self, product: &Product, operands: &Operands<'_, Memory>) -> bool {
        let Product { a, b, d, .. } = *product;
        let at = |layout: Layout, row: usize, column: usize| {
            assert!(row < layout.rows && column < layout.columns, "inside of {layout:?}");
            row + column * layout.leading
        };
        let place = |(layout, turn): (Layout, Turn), row: usize, column: usize| match turn {
            Turn::Straight => at(layout, row, column),
            Turn::Turned => at(layout, column, row),
        };
        let inner = if a.1 == Turn::Straight { a.0.columns } else { a.0.rows };
        let (left, right) = (operands.a.values(), operands.b.values());
        let before = operands.c.map(Memory::values);
        let mut values = vec![f32::NAN; operands.d.values().len()];
        for column in 0..d.columns {
            for row in 0..d.rows {
                let term = |i| left[place(a, row, i)] * right[place(b, i, column)];
                let sum: f32 = (0..inner).map(term).sum();
                let place = at(d, row, column);
                values[place] =
                    operands.alpha * sum + before.as_ref().map_or(0.0, |before| before[place]);
            }
        }
        operands.d.put(&values);
        true
    }
}

/// The program as a library of the host, compiled where it is not there yet.
fn compiled(program: &Program) -> PathBuf {
    let emulator = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cuda/emulator");
    let text = format!(
        "#include \"emulator.h\"\n{}#define ENTRY {}\n#include \"launch.h\"\n",
        program.text(),
        program.entry
    );
    let header = |name: &str| std::fs::read(emulator.join(name)).expect("part of the repository");
    let mut hasher = DefaultHasher::new();
    (&text, header("emulator.h"), header("launch.h")).hash(&mut hasher);
    let folder = std::env::current_exe().expect("tests are a program").with_file_name("emulated");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    let library = folder.join(format!("{:016x}.so", hasher.finish()));
    if library.exists() {
        return library;
    }
    let source = folder.join(format!("{}-{:016x}.cpp", std::process::id(), hasher.finish()));
    let partial = source.with_extension("partial");
    std::fs::write(&source, text).expect("the target folder can be written");
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-shared", "-I"])
        .arg(&emulator)
        .arg("-o")
        .args([&partial, &source])
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}; install a C++ compiler", compiler.display()));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program:?}:\n{complaint}");
    std::fs::rename(&partial, &library).expect("same folder");
    std::fs::remove_file(&source).expect("written above");
    library
}

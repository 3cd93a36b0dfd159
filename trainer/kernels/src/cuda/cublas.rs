//! Dense products by cuBLASLt.
//!
//! The library works on a stream of ours. Both ways of waiting are events of the GPU, none of the
//! host: before a product our stream waits for an event that stands for all work of the context so
//! far (`cuCtxRecordEvent`); behind it all later work of the context waits for ours
//! (`cuCtxWaitEvent`). Asking CubeCL for a buffer's address first makes sure that its earlier work
//! has reached the GPU's queues. Drivers before CUDA 12.5 lack the two calls; there burn multiplies.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;
use std::rc::Rc;

use burn_cubecl::cubecl::__private::Runtime;
use burn_cubecl::tensor::CubeTensor;
use cubecl_cuda::CudaRuntime;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::launch::{Element, Layout, Operands, Product, Turn};

type Pointer = *mut c_void;

/// Bytes that a product may use beside its operands; NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

const COMPUTE_32F: c_int = 68;
const R_32F: c_int = 0;
const R_16BF: c_int = 14;
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const STREAM_NON_BLOCKING: c_uint = 1;
const EVENT_DISABLE_TIMING: c_uint = 2;

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($name:ident { $($field:ident: $symbol:literal ($($argument:ty),*);)* }) => {
        struct $name {
            $($field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl $name {
            /// # Safety
            /// The library is the one whose functions have these signatures.
            unsafe fn of(library: &Library) -> Option<Self> {
                // SAFETY: promised by the caller; the libraries are never closed.
                unsafe { Some(Self { $($field: *library.get($symbol).ok()?,)* }) }
            }
        }
    };
}

functions!(Driver {
    device_get: c"cuDeviceGet" (*mut c_int, c_int);
    retain: c"cuDevicePrimaryCtxRetain" (*mut Pointer, c_int);
    set_current: c"cuCtxSetCurrent" (Pointer);
    record_context: c"cuCtxRecordEvent" (Pointer, Pointer);
    context_waits: c"cuCtxWaitEvent" (Pointer, Pointer);
    stream_create: c"cuStreamCreate" (*mut Pointer, c_uint);
    stream_waits: c"cuStreamWaitEvent" (Pointer, Pointer, c_uint);
    event_create: c"cuEventCreate" (*mut Pointer, c_uint);
    event_record: c"cuEventRecord" (Pointer, Pointer);
    allocate: c"cuMemAlloc_v2" (*mut u64, usize);
});

functions!(Blas {
    create: c"cublasLtCreate" (*mut Pointer);
    desc_create: c"cublasLtMatmulDescCreate" (*mut Pointer, c_int, c_int);
    desc_set: c"cublasLtMatmulDescSetAttribute" (Pointer, c_int, *const c_void, usize);
    layout_create: c"cublasLtMatrixLayoutCreate" (*mut Pointer, c_int, u64, u64, i64);
    preference_create: c"cublasLtMatmulPreferenceCreate" (*mut Pointer);
    preference_set: c"cublasLtMatmulPreferenceSetAttribute" (Pointer, c_int, *const c_void, usize);
    heuristic: c"cublasLtMatmulAlgoGetHeuristic" (
        Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, c_int, *mut Heuristic, *mut c_int
    );
    matmul: c"cublasLtMatmul" (
        Pointer, Pointer, *const c_void, u64, Pointer, u64, Pointer, *const c_void, u64, Pointer,
        u64, Pointer, *const [u64; 8], u64, usize, Pointer
    );
});

/// A product's descriptors and the algorithm that cuBLASLt chose for it.
struct Plan {
    desc: Pointer,
    a: Pointer,
    b: Pointer,
    d: Pointer,
    algorithm: [u64; 8],
}

/// The library on one GPU, as one thread uses it.
struct CublasLt {
    driver: Driver,
    blas: Blas,
    context: Pointer,
    handle: Pointer,
    stream: Pointer,
    before: Pointer,
    behind: Pointer,
    workspace: u64,
    plans: RefCell<HashMap<Product, Option<Rc<Plan>>>>,
}

thread_local! {
    /// The library by the GPU's number; `None` where it cannot be used.
    static LIBRARIES: RefCell<HashMap<usize, Option<Rc<CublasLt>>>> = RefCell::default();
}

/// Opens the driver and cuBLASLt, which the process may hold already.
fn open_libraries() -> Option<(Driver, Blas)> {
    // SAFETY: opening NVIDIA's libraries runs their initialisers, which have no preconditions; the
    // functions have these signatures. Leaked: the libraries stay open.
    unsafe {
        let driver = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let names = ["libcublasLt.so.13", "libcublasLt.so.12"];
        let blas = names
            .iter()
            .find_map(|&name| Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL).ok())?;
        let functions = (Driver::of(&driver)?, Blas::of(&blas)?);
        std::mem::forget((driver, blas));
        Some(functions)
    }
}

/// Whether the driver and cuBLASLt are there with all that is needed of them.
pub(super) fn is_there() -> bool {
    open_libraries().is_some()
}

fn ok(status: c_int) -> Option<()> {
    (status == 0).then_some(())
}

impl CublasLt {
    fn open(index: usize) -> Option<Self> {
        let (driver, blas) = open_libraries()?;
        let (mut device, mut context, mut handle) = (0, null_mut(), null_mut());
        let (mut stream, mut before, mut behind, mut workspace) =
            (null_mut(), null_mut(), null_mut(), 0_u64);
        // SAFETY: each function writes through pointers to locals that outlive the call. CubeCL has
        // initialised the driver, as a tensor on the GPU exists.
        unsafe {
            ok((driver.device_get)(&raw mut device, c_int::try_from(index).ok()?))?;
            ok((driver.retain)(&raw mut context, device))?;
            ok((driver.set_current)(context))?;
            ok((driver.stream_create)(&raw mut stream, STREAM_NON_BLOCKING))?;
            ok((driver.event_create)(&raw mut before, EVENT_DISABLE_TIMING))?;
            ok((driver.event_create)(&raw mut behind, EVENT_DISABLE_TIMING))?;
            ok((driver.allocate)(&raw mut workspace, WORKSPACE))?;
            ok((blas.create)(&raw mut handle))?;
        }
        let plans = RefCell::default();
        Some(Self { driver, blas, context, handle, stream, before, behind, workspace, plans })
    }

    fn layout(&self, layout: Layout, element: Element) -> Option<Pointer> {
        let mut pointer = null_mut();
        let Layout { rows, columns, leading } = layout;
        // SAFETY: writes a pointer to a local.
        ok(unsafe {
            (self.blas.layout_create)(
                &raw mut pointer,
                cuda_type(element),
                rows as u64,
                columns as u64,
                leading as i64,
            )
        })?;
        Some(pointer)
    }

    /// The descriptors of a product, made once and kept; `None` where there is no algorithm.
    fn plan(&self, product: &Product) -> Option<Rc<Plan>> {
        let mut plans = self.plans.borrow_mut();
        plans.entry(*product).or_insert_with(|| self.new_plan(product).map(Rc::new)).clone()
    }

    fn new_plan(&self, product: &Product) -> Option<Plan> {
        let (mut desc, mut preference) = (null_mut(), null_mut());
        let a = self.layout(product.a.0, product.input)?;
        let b = self.layout(product.b.0, product.input)?;
        let d = self.layout(product.d, product.output)?;
        let turn = |turn: Turn| c_int::from(turn == Turn::Turned);
        let (turn_a, turn_b) = (turn(product.a.1), turn(product.b.1));
        let mut found =
            Heuristic { algorithm: [0; 8], workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        // SAFETY: each function reads or writes locals that outlive the call, of the sizes given.
        unsafe {
            ok((self.blas.desc_create)(&raw mut desc, COMPUTE_32F, R_32F))?;
            let set = |name, value: &c_int| {
                ok((self.blas.desc_set)(desc, name, std::ptr::from_ref(value).cast(), 4))
            };
            set(DESC_TRANSA, &turn_a)?;
            set(DESC_TRANSB, &turn_b)?;
            ok((self.blas.preference_create)(&raw mut preference))?;
            let bytes = std::ptr::from_ref(&WORKSPACE).cast();
            ok((self.blas.preference_set)(preference, PREF_MAX_WORKSPACE_BYTES, bytes, 8))?;
            let (one, found) = (1, &raw mut found);
            ok((self.blas.heuristic)(
                self.handle,
                desc,
                a,
                b,
                d,
                d,
                preference,
                one,
                found,
                &raw mut count,
            ))?;
        }
        let usable = count == 1 && found.state == 0 && found.workspace <= WORKSPACE;
        usable.then_some(Plan { desc, a, b, d, algorithm: found.algorithm })
    }

    /// Puts the product between all work of the context so far and all later work.
    fn run(&self, plan: &Plan, addresses: [u64; 4], (alpha, beta): (f32, f32)) -> Option<()> {
        let [a, b, c, d] = addresses;
        // SAFETY: the addresses are of buffers that the caller holds, as large as the layouts say;
        // descriptors, stream, events and workspace live as long as the thread.
        unsafe {
            ok((self.driver.set_current)(self.context))?;
            ok((self.driver.record_context)(self.context, self.before))?;
            ok((self.driver.stream_waits)(self.stream, self.before, 0))?;
            let status = (self.blas.matmul)(
                self.handle,
                plan.desc,
                std::ptr::from_ref(&alpha).cast(),
                a,
                plan.a,
                b,
                plan.b,
                std::ptr::from_ref(&beta).cast(),
                c,
                plan.d,
                d,
                plan.d,
                std::ptr::from_ref(&plan.algorithm),
                self.workspace,
                WORKSPACE,
                self.stream,
            );
            ok((self.driver.event_record)(self.behind, self.stream))?;
            ok((self.driver.context_waits)(self.context, self.behind))?;
            ok(status)
        }
    }
}

fn cuda_type(element: Element) -> c_int {
    match element {
        Element::F32 => R_32F,
        Element::Bf16 => R_16BF,
    }
}

/// Multiplies on the GPU of the operands; `false` where the library or the product is not there.
pub(super) fn multiply(product: &Product, operands: &Operands<'_, CubeTensor>) -> bool {
    let burn_cubecl::CubeDevice::Cuda(device) = &operands.a.device else { return false };
    let index = device.index;
    let library = LIBRARIES.with_borrow_mut(|libraries| {
        libraries.entry(index).or_insert_with(|| CublasLt::open(index).map(Rc::new)).clone()
    });
    let Some(library) = library else { return false };
    let Some(plan) = library.plan(product) else { return false };
    // Each resource keeps its memory until all are let go, behind the product.
    let resource = |buffer: &CubeTensor| {
        let handle = buffer.handle.clone();
        buffer.client.get_resource::<<CudaRuntime as Runtime>::Server>(handle).ok()
    };
    let (Some(a), Some(b), Some(d)) =
        (resource(operands.a), resource(operands.b), resource(operands.d))
    else {
        return false;
    };
    let c = match operands.c {
        Some(c) => match resource(c) {
            Some(c) => Some(c),
            None => return false,
        },
        None => None,
    };
    let address_of_c = c.as_ref().map_or(d.resource().ptr, |c| c.resource().ptr);
    let beta = if c.is_some() { 1.0 } else { 0.0 };
    let addresses = [a.resource().ptr, b.resource().ptr, address_of_c, d.resource().ptr];
    library.run(&plan, addresses, (operands.alpha, beta)).is_some()
}

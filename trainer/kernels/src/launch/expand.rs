//! Quantised matrices into a scratch matrix.

use burn::tensor::Tensor;

use super::{Access, Element, File, Launch, Machine, Program, Scalars, THREADS, blocks_for};

/// A quantised matrix on a machine.
pub(crate) enum Codes<B> {
    /// Two numbers a byte; codes of the blocks' scales and their factors; see `Nf4Matrix`.
    Nf4 { codes: B, scale_codes: B, scale_scales: B, tables: B, offset: f32 },
    /// A signed byte a number, one scale a row.
    Int8 { codes: B, absmax: B },
    /// Blocks of a GGUF file, of the type with this number.
    Gguf { bytes: B, stored: u32 },
}

/// The matrix in an activation's number format: `[rows, columns]`.
pub(crate) fn expand<M: Machine>(
    machine: &M,
    codes: &Codes<M::Buffer>,
    [rows, columns]: [usize; 2],
    element: Element,
) -> Option<Tensor<2>> {
    let elements = rows * columns;
    if columns == 0 || !columns.is_multiple_of(element.per_load()) {
        return None;
    }
    let loads = (elements / element.per_load()) as u64;
    let launch = |program: Program, offset: f32| Launch {
        program,
        grid: blocks_for(loads),
        threads: THREADS,
        scalars: Scalars::default().long(loads).word(columns).float(offset),
    };
    let program = |entry| Program::new(File::Dequantise, entry, element);
    let read = Access::Read;
    let out = match codes {
        Codes::Nf4 { codes, scale_codes, scale_scales, tables, offset } => {
            let out = machine.empty(codes, element.dtype(), elements);
            let inputs = [(codes, read), (scale_codes, read), (scale_scales, read), (tables, read)];
            let arguments: Vec<_> = inputs.into_iter().chain([(&out, Access::Write)]).collect();
            machine.launch(&launch(program("expand_nf4"), *offset), &arguments);
            out
        }
        Codes::Int8 { codes, absmax } => {
            let out = machine.empty(codes, element.dtype(), elements);
            let arguments = [(codes, read), (absmax, read), (&out, Access::Write)];
            machine.launch(&launch(program("expand_int8"), 0.0), &arguments);
            out
        }
        Codes::Gguf { bytes, stored } => {
            let out = machine.empty(bytes, element.dtype(), elements);
            let program = program("expand_gguf").with("STORED", *stored as usize);
            machine.launch(&launch(program, 0.0), &[(bytes, read), (&out, Access::Write)]);
            out
        }
    };
    Some(machine.tensor(out, [rows, columns]))
}

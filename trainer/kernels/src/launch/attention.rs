//! Tiles of attention: what each block of threads takes.

use burn::tensor::{DType, Tensor};

use super::{Access, Element, File, Launch, Machine, Program, Scalars};
use crate::attention::{AttentionOutput, AttentionShape, Segments, Sight, Span};

/// Widths of a head that the kernels are compiled and tested for.
pub(super) const HEAD_DIMS: [usize; 9] = [32, 64, 80, 96, 112, 128, 160, 192, 256];

/// Whether there are kernels for heads of this width.
pub(crate) fn knows(head_dim: usize) -> bool {
    HEAD_DIMS.contains(&head_dim)
}

/// Threads of the kernel that takes a query and head a warp.
const DOT_THREADS: u32 = 256;

/// Rows and columns of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TileSize {
    rows: usize,
    columns: usize,
    threads: u32,
}

/// A kernel's constants and the shape it serves.
struct Kernels {
    element: Element,
    shape: AttentionShape,
}

impl Kernels {
    fn of(tensors: &[&Tensor<2>], shape: AttentionShape) -> Option<Self> {
        let element = Element::of(tensors.first()?.dtype())?;
        let alike = tensors.iter().all(|tensor| tensor.dtype() == element.dtype());
        let grouped = shape.heads.is_multiple_of(shape.kv_heads);
        let known = knows(shape.head_dim);
        (alike && grouped && known).then_some(Self { element, shape })
    }

    /// Tiles fill the 48 KiB of shared memory that a block has: `ROWS` and `COLUMNS` of `head_dim`
    /// numbers, one or two of each.
    fn forward_size(&self) -> TileSize {
        match (self.element, self.shape.head_dim) {
            (Element::Bf16, ..=128) => TileSize { rows: 64, columns: 64, threads: 128 },
            (Element::Bf16, _) => TileSize { rows: 64, columns: 32, threads: 128 },
            (Element::F32, _) => self.backward_size(),
        }
    }

    fn backward_size(&self) -> TileSize {
        match (self.element, self.shape.head_dim) {
            (Element::Bf16, ..=128) => TileSize { rows: 64, columns: 32, threads: 128 },
            (Element::Bf16, _) => TileSize { rows: 32, columns: 16, threads: 64 },
            (Element::F32, ..=128) => TileSize { rows: 8, columns: 16, threads: 128 },
            (Element::F32, _) => TileSize { rows: 8, columns: 8, threads: 128 },
        }
    }

    fn program(&self, entry: &'static str, size: TileSize) -> Program {
        let file = match self.element {
            Element::Bf16 => File::Attention,
            Element::F32 => File::AttentionScalar,
        };
        self.program_of(file, entry, size)
    }

    fn program_of(&self, file: File, entry: &'static str, size: TileSize) -> Program {
        Program::new(file, entry, self.element)
            .with("HEAD_DIM", self.shape.head_dim)
            .with("ROWS", size.rows)
            .with("COLUMNS", size.columns)
    }

    fn scalars(&self, tokens: usize) -> Scalars {
        let window = match self.shape.sight {
            Sight::Whole => 0,
            Sight::Window(positions) => positions.min(i32::MAX as usize),
        };
        Scalars::default()
            .word(self.shape.heads)
            .word(self.shape.kv_heads)
            .word(tokens)
            .word(window)
            .float(self.shape.scale as f32)
            .float(self.shape.soft_cap.unwrap_or(0.0) as f32)
    }

    fn launch(&self, program: Program, grid: [u32; 3], threads: u32, tokens: usize) -> Launch {
        Launch { program, grid, threads, scalars: self.scalars(tokens) }
    }
}

/// Tiles of queries, those that see most first: they take longest.
fn query_tiles(segments: &Segments, rows: usize) -> Option<Vec<[i32; 8]>> {
    let tile = |span: Span, first: usize| {
        let count = rows.min(span.queries - first);
        let position = span.keys - span.queries + first;
        tile_words([
            span.query + first,
            count,
            position,
            span.key,
            span.keys,
            span.queries,
            span.keys,
        ])
    };
    ordered(segments, tile, |span| span.queries, rows)
}

/// Tiles of keys, those that most queries see first.
fn key_tiles(segments: &Segments, rows: usize) -> Option<Vec<[i32; 8]>> {
    let tile = |span: Span, first: usize| {
        let count = rows.min(span.keys - first);
        tile_words([
            span.key + first,
            count,
            first,
            span.query,
            span.queries,
            span.queries,
            span.keys,
        ])
    };
    let mut tiles = ordered(segments, tile, |span| span.keys, rows)?;
    tiles.reverse();
    Some(tiles)
}

fn ordered(
    segments: &Segments,
    tile: impl Fn(Span, usize) -> Option<[i32; 8]>,
    length: impl Fn(Span) -> usize,
    rows: usize,
) -> Option<Vec<[i32; 8]>> {
    let mut tiles = Vec::new();
    for span in segments.spans() {
        for first in (0..length(span)).step_by(rows) {
            tiles.push(tile(span, first)?);
        }
    }
    tiles.sort_by_key(|tile| std::cmp::Reverse(tile[2]));
    (!tiles.is_empty()).then_some(tiles)
}

fn tile_words(values: [usize; 7]) -> Option<[i32; 8]> {
    let mut words = [0; 8];
    for (word, value) in words.iter_mut().zip(values) {
        *word = i32::try_from(value).ok()?;
    }
    Some(words)
}

pub(crate) fn attention<M: Machine>(
    machine: &M,
    (q, k, v): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    shape: AttentionShape,
    segments: &Segments,
) -> Option<AttentionOutput> {
    let kernels = Kernels::of(&[q, k, v], shape)?;
    let size = kernels.forward_size();
    let tiles = query_tiles(segments, size.rows)?;
    let [tokens, width] = q.dims();
    let (queries, keys, values) = (machine.read(q)?, machine.read(k)?, machine.read(v)?);
    let places = machine.upload(&queries, bytemuck::cast_slice(&tiles));
    let output = machine.empty(&queries, q.dtype(), tokens * width);
    let log_sum_exp = machine.empty(&queries, DType::F32, shape.heads * tokens);
    let program = kernels.program("attention", size);
    let grid = [tiles.len() as u32, shape.heads as u32, 1];
    let arguments = [
        (&queries, Access::Read),
        (&keys, Access::Read),
        (&values, Access::Read),
        (&places, Access::Read),
        (&output, Access::Write),
        (&log_sum_exp, Access::Write),
    ];
    machine.launch(&kernels.launch(program, grid, size.threads, tokens), &arguments);
    Some(AttentionOutput {
        output: machine.tensor(output, [tokens, width]),
        log_sum_exp: machine.tensor(log_sum_exp, [shape.heads, tokens]),
    })
}

pub(crate) fn attention_gradient<M: Machine>(
    machine: &M,
    d_output: &Tensor<2>,
    (q, k, v): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    forward: &AttentionOutput,
    shape: AttentionShape,
    segments: &Segments,
) -> Option<(Tensor<2>, Tensor<2>, Tensor<2>)> {
    let kernels = Kernels::of(&[q, k, v, d_output, &forward.output], shape)?;
    let (size, tokens) = (kernels.backward_size(), q.dims()[0]);
    if segments.keys() != k.dims()[0] {
        return None;
    }
    let (query_places, key_places) =
        (query_tiles(segments, size.rows)?, key_tiles(segments, size.rows)?);
    let buffers = Buffers {
        q: machine.read(q)?,
        k: machine.read(k)?,
        v: machine.read(v)?,
        d_output: machine.read(d_output)?,
        log_sum_exp: machine.read(&forward.log_sum_exp)?,
        dots: dots(machine, &kernels, d_output, &forward.output)?,
    };
    let empty =
        |like: &Tensor<2>| machine.empty(&buffers.q, q.dtype(), like.shape().num_elements());
    let (dq, dk, dv) = (empty(q), empty(k), empty(v));
    let pass = Pass { machine, kernels: &kernels, buffers: &buffers, tokens };
    pass.run(&query_places, shape.heads, &Sums::QUERIES, (&dq, &dq));
    if shape.head_dim <= 128 || kernels.element == Element::F32 {
        pass.run(&key_places, shape.kv_heads, &Sums::KEYS_AND_VALUES, (&dk, &dv));
    } else {
        // Both sums of a wide head do not fit into the registers of a thread.
        pass.run(&key_places, shape.kv_heads, &Sums::KEYS, (&dk, &dv));
        pass.run(&key_places, shape.kv_heads, &Sums::VALUES, (&dk, &dv));
    }
    Some((machine.tensor(dq, q.dims()), machine.tensor(dk, k.dims()), machine.tensor(dv, v.dims())))
}

/// What the backward pass reads.
struct Buffers<B> {
    q: B,
    k: B,
    v: B,
    d_output: B,
    log_sum_exp: B,
    dots: B,
}

/// Which sums a kernel keeps: `ROWS_ARE_KEYS`, `WITH_1`, `WITH_2`.
struct Sums(usize, usize, usize);

impl Sums {
    const QUERIES: Self = Self(0, 1, 0);
    const KEYS: Self = Self(1, 1, 0);
    const VALUES: Self = Self(1, 0, 1);
    const KEYS_AND_VALUES: Self = Self(1, 1, 1);
}

struct Pass<'a, M: Machine> {
    machine: &'a M,
    kernels: &'a Kernels,
    buffers: &'a Buffers<M::Buffer>,
    tokens: usize,
}

impl<M: Machine> Pass<'_, M> {
    fn run(
        &self,
        tiles: &[[i32; 8]],
        heads: usize,
        sums: &Sums,
        (first, second): (&M::Buffer, &M::Buffer),
    ) {
        let size = self.kernels.backward_size();
        let program = self
            .kernels
            .program("attention_gradient", size)
            .with("ROWS_ARE_KEYS", sums.0)
            .with("WITH_1", sums.1)
            .with("WITH_2", sums.2);
        let grid = [tiles.len() as u32, heads as u32, 1];
        let places = self.machine.upload(&self.buffers.q, bytemuck::cast_slice(tiles));
        let read = Access::Read;
        let Buffers { q, k, v, d_output, log_sum_exp, dots } = self.buffers;
        let arguments = [
            (q, read),
            (k, read),
            (v, read),
            (d_output, read),
            (log_sum_exp, read),
            (dots, read),
            (&places, read),
            (first, Access::Write),
            (second, Access::Write),
        ];
        let launch = self.kernels.launch(program, grid, size.threads, self.tokens);
        self.machine.launch(&launch, &arguments);
    }
}

/// `sum(do * o)` of each head and query.
fn dots<M: Machine>(
    machine: &M,
    kernels: &Kernels,
    d_output: &Tensor<2>,
    output: &Tensor<2>,
) -> Option<M::Buffer> {
    let ([tokens, _], heads) = (output.dims(), kernels.shape.heads);
    let (d, o) = (machine.read(d_output)?, machine.read(output)?);
    let dots = machine.empty(&d, DType::F32, heads * tokens);
    let warps = (DOT_THREADS / 32) as usize;
    let grid = [(tokens * heads).div_ceil(warps) as u32, 1, 1];
    // It has nothing for tensor cores to do.
    let size = kernels.forward_size();
    let program = kernels.program_of(File::AttentionScalar, "attention_dots", size);
    let launch = kernels.launch(program, grid, DOT_THREADS, tokens);
    machine.launch(&launch, &[(&d, Access::Read), (&o, Access::Read), (&dots, Access::Write)]);
    Some(dots)
}

// Causal attention over packed segments, for bf16 on tensor cores (mma.sync m16n8k16, sums in f32).
//
// Nothing of size tokens x tokens exists: a block keeps a tile of rows and walks over the columns
// they see (Dao et al. 2022, arXiv 2205.14135). The host hands in one Tile a block. There are no
// atomic sums, so results repeat.
//
//   forward      rows: queries, columns: keys;  o = softmax(scale q kT) v, with the softmax on line
//   backward     R1 C1T gives scores, R2 C2T gives do vT; both are rebuilt, none is kept:
//     ROWS_ARE_KEYS 0   R1 = q, R2 = do, C1 = k, C2 = v;  dq += ds k
//     ROWS_ARE_KEYS 1   R1 = k, R2 = v, C1 = q, C2 = do;  dk += dsT q and dv += pT do
//
// Defined before this text: HEAD_DIM (a multiple of 16, at most 256), ROWS (16 a warp), COLUMNS (a
// multiple of 16), and for the backward pass ROWS_ARE_KEYS, WITH_1 (dq or dk), WITH_2 (dv).

struct Tile {
    i32 row;       // first row of this tile, of all rows
    i32 rows;      // rows of it that exist
    i32 position;  // where in its segment the first row stands, counted in keys
    i32 column;    // the segment's first column, of all columns
    i32 columns;   // columns of the segment
    i32 queries;   // queries of the segment
    i32 keys;      // keys of the segment
    i32 unused;
};

struct Attention {
    u32 heads;
    u32 kv_heads;
    u32 tokens;  // queries of all segments: width of log_sum_exp
    i32 window;  // positions that a query sees, its own among them; 0: all
    float scale;
    float cap;   // 0: none
};

#define CHUNKS (HEAD_DIM / 8) // of 16 bytes in a row
#define K_STEPS (HEAD_DIM / 16)
#define WARPS (ROWS / 16)
#define NARROW (COLUMNS / 8)
#define POWER_OF_TWO ((CHUNKS & (CHUNKS - 1)) == 0 && CHUNKS >= 8)
#define STRIDE (POWER_OF_TWO ? CHUNKS : CHUNKS + 1)

// Where a chunk of a row lies in shared memory, so that 8 rows of one chunk meet no bank twice.
__device__ inline int place(int row, int chunk) {
    return row * STRIDE + (POWER_OF_TWO ? chunk ^ (row & 7) : chunk);
}

// Rows `first..` of a matrix into shared memory; those past `count` become 0.
__device__ inline void fetch(Sixteen *to, const Bf16 *from, u64 stride, int first, int count,
                             int rows) {
    for (int i = threadIdx.x; i < rows * CHUNKS; i += WARPS * WARP) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        Sixteen bytes = {{0, 0, 0, 0}};
        if (first + row < count) {
            bytes = *(const Sixteen *)(from + (u64)(first + row) * stride + chunk * 8);
        }
        to[place(row, chunk)] = bytes;
    }
}

#ifdef __CUDACC__
__device__ inline void load_matrices(u32 *to, const Sixteen *from) {
    u32 address = (u32)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

__device__ inline void load_matrices_turned(u32 *to, const Sixteen *from) {
    u32 address = (u32)__cvta_generic_to_shared(from);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

// sum += a b for a [16, 16], b [16, 8].
__device__ inline void multiply(float *sum, const u32 *a, const u32 *b) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// The left operand of a product: rows `16 * warp..` and elements `16 * step..` of a tile.
__device__ inline void left(u32 *to, const Sixteen *tile, int warp, int step) {
    int lane = threadIdx.x % WARP;
    load_matrices(to, tile + place(warp * 16 + lane % 16, step * 2 + lane / 16));
}

// scores[16, COLUMNS] = rows columnsT. Each pair of calls below reads two 8-column operands.
__device__ inline void scores_of(float (*scores)[4], const Sixteen *rows, const Sixteen *columns,
                                 int warp) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < NARROW; n++) {
        scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < K_STEPS; step++) {
        u32 a[4];
        left(a, rows, warp, step);
#pragma unroll
        for (int n = 0; n < NARROW; n += 2) {
            u32 b[4];
            int row = n * 8 + lane / 16 * 8 + lane % 8;
            load_matrices(b, columns + place(row, step * 2 + lane / 8 % 2));
            multiply(scores[n], a, b);
            multiply(scores[n + 1], a, b + 2);
        }
    }
}

// sum[16, HEAD_DIM] += weights[16, COLUMNS] columns, the weights rounded to bf16.
__device__ inline void add_product(float (*sum)[4], float (*weights)[4], const Sixteen *columns) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int step = 0; step < COLUMNS / 16; step++) {
        float *low = weights[2 * step], *high = weights[2 * step + 1];
        u32 a[4] = {bf16_pair(low[0], low[1]), bf16_pair(low[2], low[3]),
                    bf16_pair(high[0], high[1]), bf16_pair(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n += 2) {
            u32 b[4];
            load_matrices_turned(b, columns + place(step * 16 + lane % 16, n + lane / 16));
            multiply(sum[n], a, b);
            multiply(sum[n + 1], a, b + 2);
        }
    }
}

// Writes a warp's 16 rows of a tile of rows `stride` apart.
__device__ inline void write_rows(Bf16 *to, u64 stride, const Tile &tile, int warp,
                                  float (*sum)[4], float low_factor, float high_factor) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = warp * 16 + half * 8 + lane / 4;
        float factor = half ? high_factor : low_factor;
        if (row < tile.rows) {
            Bf16 *out = to + (u64)(tile.row + row) * stride + lane % 4 * 2;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) {
                float *pair = sum[n] + half * 2;
                *(u32 *)(out + n * 8) = bf16_pair(pair[0] * factor, pair[1] * factor);
            }
        }
    }
}

__device__ inline bool sees(int query, int key, int window) {
    return key <= query && (window == 0 || key > query - window);
}

#ifndef ROWS_ARE_KEYS
#ifdef FOR_attention
LAUNCHED void __launch_bounds__(WARPS *WARP)
    attention(const Bf16 *q, const Bf16 *k, const Bf16 *v, const Tile *tiles, Bf16 *output,
              float *log_sum_exp, Attention shape) {
    __shared__ Sixteen queries[ROWS * STRIDE], keys[COLUMNS * STRIDE];
#if HEAD_DIM <= 128
    __shared__ Sixteen values[COLUMNS * STRIDE];
#else
    Sixteen *values = keys; // They take turns.
#endif
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    u64 query_width = (u64)shape.heads * HEAD_DIM, key_width = (u64)shape.kv_heads * HEAD_DIM;
    const Bf16 *k_head = k + (u64)tile.column * key_width + kv_head * HEAD_DIM;
    const Bf16 *v_head = v + (u64)tile.column * key_width + kv_head * HEAD_DIM;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    fetch(queries, q + (u64)tile.row * query_width + head * HEAD_DIM, query_width, 0, tile.rows,
          ROWS);

    float sum[HEAD_DIM / 8][4], largest[2] = {-1e30f, -1e30f}, total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        sum[n][0] = sum[n][1] = sum[n][2] = sum[n][3] = 0.0f;
    }
    int position[2] = {tile.position + warp * 16 + lane / 4,
                       tile.position + warp * 16 + lane / 4 + 8};
    int end = min(tile.columns, tile.position + tile.rows);
    int begin = shape.window == 0 ? 0 : max(0, tile.position - shape.window + 1);
    begin = begin / COLUMNS * COLUMNS;
    for (int column = begin; column < end; column += COLUMNS) {
        __syncthreads(); // The columns before these have been read.
        fetch(keys, k_head, key_width, column, tile.columns, COLUMNS);
#if HEAD_DIM <= 128
        fetch(values, v_head, key_width, column, tile.columns, COLUMNS);
#endif
        __syncthreads();
        float scores[NARROW][4];
        scores_of(scores, queries, keys, warp);
        float new_largest[2] = {largest[0], largest[1]};
#pragma unroll
        for (int n = 0; n < NARROW; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = column + n * 8 + lane % 4 * 2 + i % 2;
                float score = scores[n][i] * shape.scale;
                if (shape.cap > 0.0f) {
                    score = shape.cap * tanhf(score / shape.cap);
                }
                bool seen = key < tile.columns && sees(position[i / 2], key, shape.window);
                scores[n][i] = seen ? score : -1e30f;
                new_largest[i / 2] = fmaxf(new_largest[i / 2], scores[n][i]);
            }
        }
        float shrink[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            // The four lanes of a row lie side by side.
            float best = new_largest[half];
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 1));
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, 2));
            shrink[half] = __expf(largest[half] - best);
            largest[half] = best;
            total[half] *= shrink[half];
        }
#pragma unroll
        for (int n = 0; n < NARROW; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float score = scores[n][i];
                // A row that has seen nothing yet keeps nothing.
                scores[n][i] = score > -1e29f ? __expf(score - largest[i / 2]) : 0.0f;
                total[i / 2] += scores[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                sum[n][i] *= shrink[i / 2];
            }
        }
#if HEAD_DIM > 128
        __syncthreads();
        fetch(values, v_head, key_width, column, tile.columns, COLUMNS);
        __syncthreads();
#endif
        add_product(sum, scores, values);
    }
    float share[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 1);
        total[half] += __shfl_xor_sync(FULL_WARP, total[half], 2);
        share[half] = 1.0f / total[half];
        int row = warp * 16 + half * 8 + lane / 4;
        if (lane % 4 == 0 && row < tile.rows) {
            log_sum_exp[(u64)head * shape.tokens + tile.row + row] =
                largest[half] + logf(total[half]);
        }
    }
    write_rows(output + head * HEAD_DIM, query_width, tile, warp, sum, share[0], share[1]);
}
#endif

#else

#ifdef FOR_attention_gradient
LAUNCHED void __launch_bounds__(WARPS *WARP)
    attention_gradient(const Bf16 *q, const Bf16 *k, const Bf16 *v, const Bf16 *d_output,
                       const float *log_sum_exp, const float *dots, const Tile *tiles,
                       Bf16 *gradient_1, Bf16 *gradient_2, Attention shape) {
    __shared__ Sixteen rows_1[ROWS * STRIDE], rows_2[ROWS * STRIDE];
    __shared__ Sixteen columns_1[COLUMNS * STRIDE], columns_2[COLUMNS * STRIDE];
    Tile tile = tiles[blockIdx.x];
    int group = shape.heads / shape.kv_heads;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    u64 query_width = (u64)shape.heads * HEAD_DIM, key_width = (u64)shape.kv_heads * HEAD_DIM;
#if ROWS_ARE_KEYS
    int kv_head = blockIdx.y, first_head = kv_head * group, heads = group;
    u64 rows_at = (u64)tile.row * key_width + kv_head * HEAD_DIM;
    fetch(rows_1, k + rows_at, key_width, 0, tile.rows, ROWS);
    fetch(rows_2, v + rows_at, key_width, 0, tile.rows, ROWS);
    // Queries that see some key of the tile, counted from the segment's first query.
    int back = tile.keys - tile.queries;
    int begin = max(0, tile.position - back) / COLUMNS * COLUMNS, end = tile.columns;
    if (shape.window != 0) {
        end = min(end, tile.position + tile.rows - 1 + shape.window - back);
    }
#else
    int first_head = blockIdx.y, kv_head = first_head / group, heads = 1;
    u64 rows_at = (u64)tile.row * query_width + first_head * HEAD_DIM;
    fetch(rows_1, q + rows_at, query_width, 0, tile.rows, ROWS);
    fetch(rows_2, d_output + rows_at, query_width, 0, tile.rows, ROWS);
    int end = min(tile.columns, tile.position + tile.rows);
    int begin = shape.window == 0 ? 0 : max(0, tile.position - shape.window + 1);
    begin = begin / COLUMNS * COLUMNS;
#endif
#if WITH_1
    float sum_1[HEAD_DIM / 8][4];
#endif
#if WITH_2
    float sum_2[HEAD_DIM / 8][4];
#endif
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
#if WITH_1
            sum_1[n][i] = 0.0f;
#endif
#if WITH_2
            sum_2[n][i] = 0.0f;
#endif
        }
    }
    for (int head = first_head; head < first_head + heads; head++) {
        const float *lse = log_sum_exp + (u64)head * shape.tokens;
        const float *dot = dots + (u64)head * shape.tokens;
        for (int column = begin; column < end; column += COLUMNS) {
            __syncthreads(); // The columns before these have been read.
#if ROWS_ARE_KEYS
            u64 at = (u64)tile.column * query_width + head * HEAD_DIM;
            fetch(columns_1, q + at, query_width, column, tile.columns, COLUMNS);
            fetch(columns_2, d_output + at, query_width, column, tile.columns, COLUMNS);
#else
            u64 at = (u64)tile.column * key_width + kv_head * HEAD_DIM;
            fetch(columns_1, k + at, key_width, column, tile.columns, COLUMNS);
            fetch(columns_2, v + at, key_width, column, tile.columns, COLUMNS);
#endif
            __syncthreads();
            float p[NARROW][4], ds[NARROW][4];
            scores_of(p, rows_1, columns_1, warp);
#if WITH_1
            scores_of(ds, rows_2, columns_2, warp);
#endif
#pragma unroll
            for (int n = 0; n < NARROW; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int row = warp * 16 + i / 2 * 8 + lane / 4;
                    int other = column + n * 8 + lane % 4 * 2 + i % 2;
                    bool inside = row < tile.rows && other < tile.columns;
#if ROWS_ARE_KEYS
                    int key = tile.position + row, query = back + other;
                    u64 token = (u64)tile.column + other;
#else
                    int key = other, query = tile.position + row;
                    u64 token = (u64)tile.row + row;
#endif
                    inside = inside && sees(query, key, shape.window);
                    float score = p[n][i] * shape.scale, curve = 1.0f;
                    if (shape.cap > 0.0f) {
                        float share = tanhf(score / shape.cap);
                        score = shape.cap * share;
                        curve = 1.0f - share * share;
                    }
                    p[n][i] = inside ? __expf(score - lse[token]) : 0.0f;
#if WITH_1
                    ds[n][i] = inside ? p[n][i] * (ds[n][i] - dot[token]) * curve : 0.0f;
#else
                    (void)curve;
                    (void)dot;
#endif
                }
            }
#if WITH_1
            add_product(sum_1, ds, columns_1);
#endif
#if WITH_2
            add_product(sum_2, p, columns_2);
#endif
        }
    }
#if ROWS_ARE_KEYS
    u64 width = key_width;
    int offset = kv_head * HEAD_DIM;
#else
    u64 width = query_width;
    int offset = first_head * HEAD_DIM;
#endif
#if WITH_1
    write_rows(gradient_1 + offset, width, tile, warp, sum_1, shape.scale, shape.scale);
#endif
#if WITH_2
    write_rows(gradient_2 + offset, width, tile, warp, sum_2, 1.0f, 1.0f);
#endif
}
#endif
#endif

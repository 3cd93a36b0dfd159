// The attention of attention.cu without tensor cores, for f32: nothing is rounded on the way. The
// sums of attention_dots are taken here for every number format.
//
// The same tiles, the same arguments, the same order of work: 16 threads share a row, and each
// owns a column of a tile of scores. HEAD_DIM is at most 256, ROWS is 8, COLUMNS at most 16.

struct Tile {
    i32 row, rows, position, column, columns, queries, keys, unused;
};

struct Attention {
    u32 heads, kv_heads, tokens;
    i32 window;
    float scale, cap;
};

#define LANES 16
#define STRIDE (HEAD_DIM + 1)
#define OWNED ((HEAD_DIM + LANES - 1) / LANES) // elements of a row that a thread sums

__device__ inline void fetch(float *to, const ELEMENT *from, u64 stride, int first, int count,
                             int rows) {
    for (int i = threadIdx.x; i < rows * HEAD_DIM; i += ROWS * LANES) {
        int row = i / HEAD_DIM, element = i % HEAD_DIM;
        bool inside = first + row < count;
        to[row * STRIDE + element] = inside ? widen(from[(u64)(first + row) * stride + element]) : 0.0f;
    }
}

__device__ inline float dot(const float *a, const float *b) {
    float sum = 0.0f;
    for (int i = 0; i < HEAD_DIM; i++) {
        sum += a[i] * b[i];
    }
    return sum;
}

// sum[j] += the row's weights times column elements; weights[COLUMNS] are the row's own.
__device__ inline void add_product(float *sum, const float *weights, const float *columns, int lane) {
    for (int j = 0; j < OWNED; j++) {
        int element = lane + j * LANES;
        if (element < HEAD_DIM) {
            for (int c = 0; c < COLUMNS; c++) {
                sum[j] += weights[c] * columns[c * STRIDE + element];
            }
        }
    }
}

__device__ inline void write_row(ELEMENT *to, const float *sum, float factor, int lane) {
    for (int j = 0; j < OWNED; j++) {
        int element = lane + j * LANES;
        if (element < HEAD_DIM) {
            narrow(sum[j] * factor, to[element]);
        }
    }
}

__device__ inline bool sees(int query, int key, int window) {
    return key <= query && (window == 0 || key > query - window);
}

#ifndef ROWS_ARE_KEYS
#ifdef FOR_attention
LAUNCHED void attention(const ELEMENT *q, const ELEMENT *k, const ELEMENT *v, const Tile *tiles,
                        ELEMENT *output, float *log_sum_exp, Attention shape) {
    __shared__ float queries[ROWS * STRIDE], columns[COLUMNS * STRIDE], weights[ROWS][LANES];
    Tile tile = tiles[blockIdx.x];
    int head = blockIdx.y, kv_head = head / (shape.heads / shape.kv_heads);
    u64 query_width = (u64)shape.heads * HEAD_DIM, key_width = (u64)shape.kv_heads * HEAD_DIM;
    const ELEMENT *k_head = k + (u64)tile.column * key_width + kv_head * HEAD_DIM;
    const ELEMENT *v_head = v + (u64)tile.column * key_width + kv_head * HEAD_DIM;
    int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    fetch(queries, q + (u64)tile.row * query_width + head * HEAD_DIM, query_width, 0, tile.rows,
          ROWS);
    float sum[OWNED] = {0}, largest = -1e30f, total = 0.0f;
    int position = tile.position + row;
    int end = min(tile.columns, tile.position + tile.rows);
    int begin = shape.window == 0 ? 0 : max(0, tile.position - shape.window + 1);
    for (int column = begin; column < end; column += COLUMNS) {
        __syncthreads();
        fetch(columns, k_head, key_width, column, tile.columns, COLUMNS);
        __syncthreads();
        float score = -1e30f;
        int key = column + lane;
        if (lane < COLUMNS && key < tile.columns && sees(position, key, shape.window)) {
            score = dot(queries + row * STRIDE, columns + lane * STRIDE) * shape.scale;
            if (shape.cap > 0.0f) {
                score = shape.cap * tanhf(score / shape.cap);
            }
        }
        float best = fmaxf(largest, score);
        for (int step = LANES / 2; step > 0; step /= 2) {
            best = fmaxf(best, __shfl_xor_sync(FULL_WARP, best, step));
        }
        float shrink = expf(largest - best);
        float weight = score > -1e29f ? expf(score - best) : 0.0f;
        largest = best;
        total = total * shrink + weight;
        weights[row][lane] = weight;
        for (int j = 0; j < OWNED; j++) {
            sum[j] *= shrink;
        }
        __syncthreads();
        fetch(columns, v_head, key_width, column, tile.columns, COLUMNS);
        __syncthreads();
        add_product(sum, weights[row], columns, lane);
    }
    for (int step = LANES / 2; step > 0; step /= 2) {
        total += __shfl_xor_sync(FULL_WARP, total, step);
    }
    if (row < tile.rows) {
        u64 token = (u64)tile.row + row;
        if (lane == 0) {
            log_sum_exp[(u64)head * shape.tokens + token] = largest + logf(total);
        }
        write_row(output + token * query_width + head * HEAD_DIM, sum, 1.0f / total, lane);
    }
}
#endif

#ifdef FOR_attention_dots
// sum(do * o) of each query and head: [heads, tokens]. A warp takes one.
LAUNCHED void attention_dots(const ELEMENT *d_output, const ELEMENT *output, float *dots,
                             Attention shape) {
    u64 index = (u64)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    bool inside = index < (u64)shape.tokens * shape.heads;
    u64 token = index / shape.heads, head = index % shape.heads;
    float sum = 0.0f;
    if (inside) {
        const ELEMENT *d = d_output + index * HEAD_DIM, *o = output + index * HEAD_DIM;
        for (int i = threadIdx.x % WARP; i < HEAD_DIM; i += WARP) {
            sum += widen(d[i]) * widen(o[i]);
        }
    }
    sum = warp_sum(sum);
    if (inside && threadIdx.x % WARP == 0) {
        dots[head * shape.tokens + token] = sum;
    }
}
#endif

#else

#ifdef FOR_attention_gradient
LAUNCHED void attention_gradient(const ELEMENT *q, const ELEMENT *k, const ELEMENT *v,
                                 const ELEMENT *d_output, const float *log_sum_exp,
                                 const float *dots, const Tile *tiles, ELEMENT *gradient_1,
                                 ELEMENT *gradient_2, Attention shape) {
    __shared__ float rows_1[ROWS * STRIDE], rows_2[ROWS * STRIDE];
    __shared__ float columns_1[COLUMNS * STRIDE], columns_2[COLUMNS * STRIDE];
    __shared__ float slopes[ROWS][LANES], weights[ROWS][LANES];
    Tile tile = tiles[blockIdx.x];
    int group = shape.heads / shape.kv_heads;
    int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    u64 query_width = (u64)shape.heads * HEAD_DIM, key_width = (u64)shape.kv_heads * HEAD_DIM;
#if ROWS_ARE_KEYS
    int kv_head = blockIdx.y, first_head = kv_head * group, heads = group;
    u64 rows_at = (u64)tile.row * key_width + kv_head * HEAD_DIM;
    fetch(rows_1, k + rows_at, key_width, 0, tile.rows, ROWS);
    fetch(rows_2, v + rows_at, key_width, 0, tile.rows, ROWS);
    int back = tile.keys - tile.queries;
    int begin = max(0, tile.position - back), end = tile.columns;
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
#endif
    float sum_1[OWNED] = {0}, sum_2[OWNED] = {0};
    for (int head = first_head; head < first_head + heads; head++) {
        for (int column = begin; column < end; column += COLUMNS) {
            __syncthreads();
#if ROWS_ARE_KEYS
            u64 at = (u64)tile.column * query_width + head * HEAD_DIM;
            fetch(columns_1, q + at, query_width, column, tile.columns, COLUMNS);
            fetch(columns_2, d_output + at, query_width, column, tile.columns, COLUMNS);
            int key = tile.position + row, query = back + column + lane;
            u64 token = (u64)tile.column + column + lane;
#else
            u64 at = (u64)tile.column * key_width + kv_head * HEAD_DIM;
            fetch(columns_1, k + at, key_width, column, tile.columns, COLUMNS);
            fetch(columns_2, v + at, key_width, column, tile.columns, COLUMNS);
            int key = column + lane, query = tile.position + row;
            u64 token = (u64)tile.row + row;
#endif
            __syncthreads();
            bool inside = lane < COLUMNS && row < tile.rows && column + lane < tile.columns;
            float weight = 0.0f, slope = 0.0f;
            if (inside && sees(query, key, shape.window)) {
                u64 place = (u64)head * shape.tokens + token;
                float score = dot(rows_1 + row * STRIDE, columns_1 + lane * STRIDE) * shape.scale;
                float curve = 1.0f;
                if (shape.cap > 0.0f) {
                    float share = tanhf(score / shape.cap);
                    score = shape.cap * share;
                    curve = 1.0f - share * share;
                }
                weight = expf(score - log_sum_exp[place]);
                float d = dot(rows_2 + row * STRIDE, columns_2 + lane * STRIDE);
                slope = weight * (d - dots[place]) * curve;
            }
            weights[row][lane] = weight;
            slopes[row][lane] = slope;
            __syncthreads();
            add_product(sum_1, slopes[row], columns_1, lane);
            add_product(sum_2, weights[row], columns_2, lane);
        }
    }
    if (row < tile.rows) {
#if ROWS_ARE_KEYS
        u64 place = ((u64)tile.row + row) * key_width + kv_head * HEAD_DIM;
        write_row(gradient_2 + place, sum_2, 1.0f, lane);
#else
        u64 place = ((u64)tile.row + row) * query_width + first_head * HEAD_DIM;
#endif
        write_row(gradient_1 + place, sum_1, shape.scale, lane);
    }
}
#endif
#endif

// Frozen matrices in fewer bits, expanded into one scratch matrix before a product.
//
// A thread writes 16 bytes. Products and sums are rounded one by one, as on the CPU, so an f32
// expansion has the CPU's bits. STORED says how GGUF blocks are laid out.

struct Expand {
    u64 loads; // elements / PER_LOAD
    u32 columns;
    float offset;
};

__device__ inline float times(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float plus(float a, float b) { return __fadd_rn(a, b); }

#define FOR_EACH_LOAD(i, count)                                                                    \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (count);                          \
         i += (u64)gridDim.x * blockDim.x)

#ifdef FOR_expand_nf4
// tables: the 16 values of NF4, then the 256 of the dynamic map.
LAUNCHED void expand_nf4(const u8 *codes, const u8 *scale_codes, const float *scale_scales,
                         const float *tables, ELEMENT *out, Expand expand) {
    __shared__ float values[16];
    if (threadIdx.x < 16) {
        values[threadIdx.x] = tables[threadIdx.x];
    }
    __syncthreads();
    FOR_EACH_LOAD(load_index, expand.loads) {
        u64 first = load_index * PER_LOAD;
        u64 block = first / 64; // PER_LOAD divides 64
        float scale = plus(times(tables[16 + scale_codes[block]], scale_scales[block / 256]),
                           expand.offset);
        float wide[PER_LOAD];
        for (int j = 0; j < PER_LOAD; j += 2) {
            u8 pair = codes[(first + j) / 2];
            wide[j] = times(values[pair >> 4], scale);
            wide[j + 1] = times(values[pair & 15], scale);
        }
        store(out + first, wide);
    }
}
#endif

#ifdef FOR_expand_int8
LAUNCHED void expand_int8(const i8 *codes, const float *absmax, ELEMENT *out, Expand expand) {
    FOR_EACH_LOAD(load_index, expand.loads) {
        u64 first = load_index * PER_LOAD; // PER_LOAD divides the columns
        float scale = absmax[first / expand.columns] / 127.0f;
        float wide[PER_LOAD];
        for (int j = 0; j < PER_LOAD; j++) {
            wide[j] = times((float)codes[first + j], scale);
        }
        store(out + first, wide);
    }
}
#endif

#ifdef STORED
#define Q4_0 2
#define Q4_1 3
#define Q5_0 6
#define Q5_1 7
#define Q8_0 8
#define Q4_K 12
#define Q5_K 13
#define Q6_K 14

__device__ inline float half_at(const u8 *block, int at) {
    return half_to_float((u16)(block[at] | block[at + 1] << 8));
}

#if STORED == Q4_0
#define BLOCK_BYTES 18
#define BLOCK_ELEMENTS 32
__device__ inline float decoded(const u8 *block, int i) {
    int packed = block[2 + i % 16];
    int code = i < 16 ? packed & 15 : packed >> 4;
    return times(half_at(block, 0), (float)(code - 8));
}
#elif STORED == Q4_1
#define BLOCK_BYTES 20
#define BLOCK_ELEMENTS 32
__device__ inline float decoded(const u8 *block, int i) {
    int packed = block[4 + i % 16];
    int code = i < 16 ? packed & 15 : packed >> 4;
    return plus(times(half_at(block, 0), (float)code), half_at(block, 2));
}
#elif STORED == Q5_0 || STORED == Q5_1
#define BLOCK_ELEMENTS 32
#if STORED == Q5_0
#define BLOCK_BYTES 22
#define HIGH 2
#else
#define BLOCK_BYTES 24
#define HIGH 4
#endif
__device__ inline float decoded(const u8 *block, int i) {
    int packed = block[HIGH + 4 + i % 16];
    int fifth = block[HIGH + i / 8] >> (i % 8) & 1;
    int code = (i < 16 ? packed & 15 : packed >> 4) | fifth << 4;
#if STORED == Q5_0
    return times(half_at(block, 0), (float)(code - 16));
#else
    return plus(times(half_at(block, 0), (float)code), half_at(block, 2));
#endif
}
#elif STORED == Q8_0
#define BLOCK_BYTES 34
#define BLOCK_ELEMENTS 32
__device__ inline float decoded(const u8 *block, int i) {
    return times(half_at(block, 0), (float)(i8)block[2 + i]);
}
#elif STORED == Q4_K || STORED == Q5_K
#define BLOCK_ELEMENTS 256
__device__ inline void scale_and_minimum(const u8 *packed, int j, float &scale, float &minimum) {
    if (j < 4) {
        scale = (float)(packed[j] & 63);
        minimum = (float)(packed[j + 4] & 63);
    } else {
        scale = (float)((packed[j + 4] & 15) | packed[j - 4] >> 6 << 4);
        minimum = (float)(packed[j + 4] >> 4 | packed[j] >> 6 << 4);
    }
}
#if STORED == Q4_K
#define BLOCK_BYTES 144
#define QUANTS 16
#else
#define BLOCK_BYTES 176
#define QUANTS 48
#endif
__device__ inline float decoded(const u8 *block, int i) {
    int pair = i / 64, l = i % 32, sub = i / 32;
    float scale, minimum;
    scale_and_minimum(block + 4, sub, scale, minimum);
    int packed = block[QUANTS + pair * 32 + l];
    int code = sub % 2 ? packed >> 4 : packed & 15;
#if STORED == Q5_K
    code |= (block[16 + l] >> sub & 1) << 4;
#endif
    float d = times(half_at(block, 0), scale), m = times(half_at(block, 2), minimum);
    return plus(times(d, (float)code), -m);
}
#elif STORED == Q6_K
#define BLOCK_BYTES 210
#define BLOCK_ELEMENTS 256
__device__ inline float decoded(const u8 *block, int i) {
    int part = i / 128, quarter = i % 128 / 32, l = i % 32;
    int packed = block[part * 64 + (quarter % 2) * 32 + l];
    int nibble = quarter < 2 ? packed & 15 : packed >> 4;
    int high = block[128 + part * 32 + l] >> (2 * quarter) & 3;
    int code = (nibble | high << 4) - 32;
    int scale = (i8)block[192 + part * 8 + l / 16 + 2 * quarter];
    return times(times(half_at(block, 208), (float)scale), (float)code);
}
#endif

#ifdef FOR_expand_gguf
LAUNCHED void expand_gguf(const u8 *bytes, ELEMENT *out, Expand expand) {
    FOR_EACH_LOAD(load_index, expand.loads) {
        u64 first = load_index * PER_LOAD; // PER_LOAD divides a block
        const u8 *block = bytes + first / BLOCK_ELEMENTS * BLOCK_BYTES;
        int start = (int)(first % BLOCK_ELEMENTS);
        float wide[PER_LOAD];
        for (int j = 0; j < PER_LOAD; j++) {
            wide[j] = decoded(block, start + j);
        }
        store(out + first, wide);
    }
}
#endif
#endif

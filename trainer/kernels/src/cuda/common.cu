// What every kernel here begins with: number formats, loads and stores, sums over a block.
//
// The text before this one defines ELEMENT, the format of activations (float or Bf16). No header is
// included, so NVRTC needs nothing beside itself; a host compiler takes the same text after
// tests/cuda/emulator.h, which brings threads, barriers and the two warp instructions.
//
// Sums run in a fixed order over a fixed number of threads: the same input gives the same bits.

#ifdef __CUDACC__
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef signed char i8;
typedef unsigned char u8;
typedef int i32;
#define LAUNCHED extern "C" __global__
#else
#define LAUNCHED
#endif

#define WARP 32
#define FULL_WARP 0xffffffffu

struct Bf16 {
    u16 bits;
};

struct alignas(16) Sixteen {
    u32 words[4];
};

__device__ inline float from_bits(u32 bits) {
    union {
        u32 bits;
        float value;
    } both;
    both.bits = bits;
    return both.value;
}

__device__ inline u32 to_bits(float value) {
    union {
        float value;
        u32 bits;
    } both;
    both.value = value;
    return both.bits;
}

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(Bf16 x) { return from_bits((u32)x.bits << 16); }

// To the nearest, ties to even; a NaN stays one.
__device__ inline u16 bf16_bits(float x) {
    u32 bits = to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (u16)((bits >> 16) | 0x40u);
    }
    return (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ inline void narrow(float x, float &to) { to = x; }
__device__ inline void narrow(float x, Bf16 &to) { to.bits = bf16_bits(x); }

// Two numbers in one register, the first in the low half.
__device__ inline u32 bf16_pair(float low, float high) {
#ifdef __CUDACC__
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    return (u32)bf16_bits(low) | (u32)bf16_bits(high) << 16;
#endif
}

// An f16 number in 16 bits.
__device__ inline float half_to_float(u16 half) {
    u32 sign = (u32)(half & 0x8000u) << 16;
    u32 rest = half & 0x7fffu;
    if (rest >= 0x7c00u) {
        return from_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    }
    if (rest >= 0x400u) {
        return from_bits(sign | ((rest << 13) + 0x38000000u));
    }
    float value = (float)rest * 5.9604644775390625e-8f; // 2^-24
    return sign ? -value : value;
}

// Numbers of ELEMENT that 16 bytes hold. Widths are multiples of it, so rows begin on 16 bytes.
#define PER_LOAD (16 / (int)sizeof(ELEMENT))

template <class T> __device__ inline void load(const T *from, float *to) {
    union {
        Sixteen bytes;
        T values[16 / sizeof(T)];
    } both;
    both.bytes = *(const Sixteen *)from;
    for (int i = 0; i < 16 / (int)sizeof(T); i++) {
        to[i] = widen(both.values[i]);
    }
}

template <class T> __device__ inline void store(T *to, const float *from) {
    union {
        Sixteen bytes;
        T values[16 / sizeof(T)];
    } both;
    for (int i = 0; i < 16 / (int)sizeof(T); i++) {
        narrow(from[i], both.values[i]);
    }
    *(Sixteen *)to = both.bytes;
}

__device__ inline float warp_sum(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        value += __shfl_xor_sync(FULL_WARP, value, step);
    }
    return value;
}

__device__ inline float warp_max(float value) {
    for (int step = WARP / 2; step > 0; step /= 2) {
        value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, step));
    }
    return value;
}

// The sum over a block of at most 1,024 threads, for all of them.
__device__ inline float block_sum(float value) {
    __shared__ float partial[WARP];
    int warps = (int)blockDim.x / WARP;
    value = warp_sum(value);
    __syncthreads(); // A sum before this one has been read.
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < warps; i++) {
        sum += partial[i];
    }
    return sum;
}

__device__ inline float block_max(float value) {
    __shared__ float partial[WARP];
    int warps = (int)blockDim.x / WARP;
    value = warp_max(value);
    __syncthreads();
    if (threadIdx.x % WARP == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float largest = partial[0];
    for (int i = 1; i < warps; i++) {
        largest = fmaxf(largest, partial[i]);
    }
    return largest;
}

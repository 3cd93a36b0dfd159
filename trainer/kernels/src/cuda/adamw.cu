// AdamW with PyTorch's order of operations, moments in f32 or in 8 bits.

struct Adamw {
    u64 elements;
    float decay;
    float beta1;
    float beta2;
    float step_size;
    float root_correction;
    float epsilon;
    float gradient;
};

__device__ inline float updated(float weight, float g, float &first, float &second,
                                const Adamw &step) {
    first += (g - first) * (1.0f - step.beta1);
    second = second * step.beta2 + g * g * (1.0f - step.beta2);
    float denominator = sqrtf(second) / step.root_correction + step.epsilon;
    return weight * step.decay - step.step_size * (first / denominator);
}

#ifdef FOR_adamw
LAUNCHED void adamw(const float *gradient, float *weight, float *first, float *second, Adamw step) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < step.elements;
         i += (u64)gridDim.x * blockDim.x) {
        float m = first[i], v = second[i];
        weight[i] = updated(weight[i], gradient[i] * step.gradient, m, v, step);
        first[i] = m;
        second[i] = v;
    }
}
#endif

#define MOMENTS 256 // numbers with one scale

// Index of the nearest of 256 ascending values, as on the CPU: a tie goes to the lower one.
__device__ inline u8 nearest(const float *values, float value) {
    int low = 0, high = 255;
    while (low < high) {
        int middle = (low + high) / 2;
        if ((values[middle] + values[middle + 1]) * 0.5f < value) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return (u8)low;
}

#ifdef FOR_adamw_8bit
// A block of 256 threads takes 256 numbers; maps: 256 signed values, then 256 unsigned ones.
LAUNCHED void adamw_8bit(const float *gradient, const float *maps, float *weight, u8 *first,
                         u8 *second, float *first_scale, float *second_scale, Adamw step) {
    __shared__ float signed_map[MOMENTS], unsigned_map[MOMENTS];
    signed_map[threadIdx.x] = maps[threadIdx.x];
    unsigned_map[threadIdx.x] = maps[MOMENTS + threadIdx.x];
    __syncthreads();
    u64 i = (u64)blockIdx.x * MOMENTS + threadIdx.x;
    bool inside = i < step.elements;
    float m = 0.0f, v = 0.0f;
    if (inside) {
        m = signed_map[first[i]] * first_scale[blockIdx.x];
        v = unsigned_map[second[i]] * second_scale[blockIdx.x];
        weight[i] = updated(weight[i], gradient[i] * step.gradient, m, v, step);
    }
    float largest_first = block_max(fabsf(m));
    float largest_second = block_max(fabsf(v));
    if (inside) {
        u8 code = nearest(signed_map, largest_first > 0.0f ? m / largest_first : 0.0f);
        // A negative moment never becomes 0.
        first[i] = m < 0.0f && signed_map[code] >= 0.0f ? code - 1 : code;
        second[i] = nearest(unsigned_map, largest_second > 0.0f ? v / largest_second : 0.0f);
    }
    if (threadIdx.x == 0) {
        first_scale[blockIdx.x] = largest_first;
        second_scale[blockIdx.x] = largest_second;
    }
}
#endif

// RMS and layer normalisation of rows, and the gradients of their inputs. A block takes a row.
//
// weight and bias are f32 and hold one row, or several that rows take in turn.

struct Norm {
    u32 width;
    u32 weight_rows;
    float epsilon;
    u32 has_bias; // in gradients: has_sum
};

__device__ inline void weights_of(const float *from, const Norm &norm, u32 i, float *to) {
    const float *row = from + (u64)(blockIdx.x % norm.weight_rows) * norm.width + i;
    for (int j = 0; j < PER_LOAD; j++) {
        to[j] = row[j];
    }
}

__device__ inline float inverse_root(float mean, float epsilon) {
    return 1.0f / sqrtf(mean + epsilon);
}

#ifdef FOR_rms_norm
LAUNCHED void rms_norm(const ELEMENT *x, const float *weight, ELEMENT *y, Norm norm) {
    const ELEMENT *row = x + (u64)blockIdx.x * norm.width;
    ELEMENT *out = y + (u64)blockIdx.x * norm.width;
    float values[PER_LOAD], weights[PER_LOAD], squares = 0.0f;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(row + i, values);
        for (int j = 0; j < PER_LOAD; j++) {
            squares += values[j] * values[j];
        }
    }
    float r = inverse_root(block_sum(squares) / (float)norm.width, norm.epsilon);
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(row + i, values);
        weights_of(weight, norm, i, weights);
        for (int j = 0; j < PER_LOAD; j++) {
            values[j] = values[j] * r * weights[j];
        }
        store(out + i, values);
    }
}
#endif

#ifdef FOR_rms_norm_gradient
LAUNCHED void rms_norm_gradient(const ELEMENT *sum, const ELEMENT *dy, const ELEMENT *x,
                                const float *weight, ELEMENT *dx, Norm norm) {
    u64 start = (u64)blockIdx.x * norm.width;
    float values[PER_LOAD], slopes[PER_LOAD], weights[PER_LOAD], squares = 0.0f, dot = 0.0f;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(x + start + i, values);
        load(dy + start + i, slopes);
        weights_of(weight, norm, i, weights);
        for (int j = 0; j < PER_LOAD; j++) {
            squares += values[j] * values[j];
            dot += slopes[j] * weights[j] * values[j];
        }
    }
    float r = inverse_root(block_sum(squares) / (float)norm.width, norm.epsilon);
    float mean = block_sum(dot) / (float)norm.width * r * r;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        float before[PER_LOAD] = {0};
        load(x + start + i, values);
        load(dy + start + i, slopes);
        weights_of(weight, norm, i, weights);
        if (norm.has_bias) {
            load(sum + start + i, before);
        }
        for (int j = 0; j < PER_LOAD; j++) {
            values[j] = before[j] + r * (slopes[j] * weights[j] - values[j] * mean);
        }
        store(dx + start + i, values);
    }
}
#endif

__device__ inline void moments(const ELEMENT *row, const Norm &norm, float &mean, float &r) {
    float values[PER_LOAD], total = 0.0f, squares = 0.0f;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(row + i, values);
        for (int j = 0; j < PER_LOAD; j++) {
            total += values[j];
        }
    }
    mean = block_sum(total) / (float)norm.width;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(row + i, values);
        for (int j = 0; j < PER_LOAD; j++) {
            squares += (values[j] - mean) * (values[j] - mean);
        }
    }
    r = inverse_root(block_sum(squares) / (float)norm.width, norm.epsilon);
}

#ifdef FOR_layer_norm
LAUNCHED void layer_norm(const ELEMENT *x, const float *weight, const float *bias, ELEMENT *y,
                         Norm norm) {
    const ELEMENT *row = x + (u64)blockIdx.x * norm.width;
    ELEMENT *out = y + (u64)blockIdx.x * norm.width;
    float values[PER_LOAD], weights[PER_LOAD], mean, r;
    moments(row, norm, mean, r);
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        float biases[PER_LOAD] = {0};
        load(row + i, values);
        weights_of(weight, norm, i, weights);
        if (norm.has_bias) {
            weights_of(bias, norm, i, biases);
        }
        for (int j = 0; j < PER_LOAD; j++) {
            values[j] = (values[j] - mean) * r * weights[j] + biases[j];
        }
        store(out + i, values);
    }
}
#endif

#ifdef FOR_layer_norm_gradient
LAUNCHED void layer_norm_gradient(const ELEMENT *sum, const ELEMENT *dy, const ELEMENT *x,
                                  const float *weight, ELEMENT *dx, Norm norm) {
    u64 start = (u64)blockIdx.x * norm.width;
    float values[PER_LOAD], slopes[PER_LOAD], weights[PER_LOAD], mean, r;
    float slope_sum = 0.0f, dot = 0.0f;
    moments(x + start, norm, mean, r);
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        load(x + start + i, values);
        load(dy + start + i, slopes);
        weights_of(weight, norm, i, weights);
        for (int j = 0; j < PER_LOAD; j++) {
            slope_sum += slopes[j] * weights[j];
            dot += slopes[j] * weights[j] * (values[j] - mean);
        }
    }
    float slope_mean = block_sum(slope_sum) / (float)norm.width;
    float curve = block_sum(dot) / (float)norm.width * r * r;
    for (u32 i = threadIdx.x * PER_LOAD; i < norm.width; i += blockDim.x * PER_LOAD) {
        float before[PER_LOAD] = {0};
        load(x + start + i, values);
        load(dy + start + i, slopes);
        weights_of(weight, norm, i, weights);
        if (norm.has_bias) {
            load(sum + start + i, before);
        }
        for (int j = 0; j < PER_LOAD; j++) {
            float slope = slopes[j] * weights[j] - slope_mean;
            values[j] = before[j] + r * (slope - (values[j] - mean) * curve);
        }
        store(dx + start + i, values);
    }
}
#endif

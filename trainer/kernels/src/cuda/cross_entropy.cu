// Loss of rows of logits, and its gradient. A block takes a row; two passes over it.

struct CrossEntropy {
    u32 vocab;
    float factor;
    u32 has_gradient;
};

#ifdef FOR_cross_entropy
LAUNCHED void cross_entropy(const ELEMENT *logits, const u32 *targets, float *losses,
                            ELEMENT *gradient, CrossEntropy loss) {
    const ELEMENT *row = logits + (u64)blockIdx.x * loss.vocab;
    // What the numbers seen so far are: their maximum, and the sum of exp(number - maximum).
    float largest = -3.0e38f, total = 0.0f;
    for (u32 i = threadIdx.x; i < loss.vocab; i += blockDim.x) {
        float value = widen(row[i]);
        if (value > largest) {
            total *= expf(largest - value);
            largest = value;
        }
        total += expf(value - largest);
    }
    float row_largest = block_max(largest);
    float row_total = block_sum(total * expf(largest - row_largest));
    float log_sum_exp = row_largest + logf(row_total);
    u32 target = targets[blockIdx.x];
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = log_sum_exp - widen(row[target]);
    }
    if (!loss.has_gradient) {
        return;
    }
    ELEMENT *out = gradient + (u64)blockIdx.x * loss.vocab;
    for (u32 i = threadIdx.x; i < loss.vocab; i += blockDim.x) {
        float slope = expf(widen(row[i]) - log_sum_exp);
        narrow((i == target ? slope - 1.0f : slope) * loss.factor, out[i]);
    }
}
#endif

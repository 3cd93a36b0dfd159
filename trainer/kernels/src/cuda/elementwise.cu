// Element by element: gated activations, rotary embedding, dropout.
//
// ACTIVATION says which function gates: 0 SiLU, 1 GELU with the error function, 2 GELU with tanh.

#ifndef ACTIVATION
#define ACTIVATION 0
#endif

// f(x) and f'(x).
__device__ inline void activation(float x, float &value, float &slope) {
#if ACTIVATION == 0
    float s = 1.0f / (1.0f + expf(-x));
    value = x * s;
    slope = s * (1.0f + x * (1.0f - s));
#elif ACTIVATION == 1
    float share = 0.5f * (1.0f + erff(x * 0.70710678f));
    value = x * share;
    slope = share + x * 0.39894228f * expf(-0.5f * x * x);
#else
    float t = tanhf(0.7978846f * (x + 0.044715f * x * x * x));
    float inner = 0.7978846f * (1.0f + 3.0f * 0.044715f * x * x);
    float share = 0.5f * (1.0f + t);
    value = x * share;
    slope = share + 0.5f * x * (1.0f - t * t) * inner;
#endif
}

struct Flat {
    u64 loads; // elements / PER_LOAD
};

#define FOR_EACH_LOAD(i, count)                                                                    \
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < (count);                          \
         i += (u64)gridDim.x * blockDim.x)

#ifdef FOR_gate
LAUNCHED void gate(const ELEMENT *gates, const ELEMENT *up, ELEMENT *y, Flat flat) {
    FOR_EACH_LOAD(i, flat.loads) {
        float g[PER_LOAD], u[PER_LOAD], value, slope;
        load(gates + i * PER_LOAD, g);
        load(up + i * PER_LOAD, u);
        for (int j = 0; j < PER_LOAD; j++) {
            activation(g[j], value, slope);
            g[j] = value * u[j];
        }
        store(y + i * PER_LOAD, g);
    }
}
#endif

#ifdef FOR_gate_gradient
LAUNCHED void gate_gradient(const ELEMENT *dy, const ELEMENT *gates, const ELEMENT *up,
                            ELEMENT *d_gates, ELEMENT *d_up, Flat flat) {
    FOR_EACH_LOAD(i, flat.loads) {
        float d[PER_LOAD], g[PER_LOAD], u[PER_LOAD], value, slope;
        load(dy + i * PER_LOAD, d);
        load(gates + i * PER_LOAD, g);
        load(up + i * PER_LOAD, u);
        for (int j = 0; j < PER_LOAD; j++) {
            activation(g[j], value, slope);
            g[j] = d[j] * u[j] * slope;
            u[j] = d[j] * value;
        }
        store(d_gates + i * PER_LOAD, g);
        store(d_up + i * PER_LOAD, u);
    }
}
#endif

#ifdef FOR_activate
LAUNCHED void activate(const ELEMENT *x, ELEMENT *y, Flat flat) {
    FOR_EACH_LOAD(i, flat.loads) {
        float values[PER_LOAD], value, slope;
        load(x + i * PER_LOAD, values);
        for (int j = 0; j < PER_LOAD; j++) {
            activation(values[j], value, slope);
            values[j] = value;
        }
        store(y + i * PER_LOAD, values);
    }
}
#endif

#ifdef FOR_activate_gradient
LAUNCHED void activate_gradient(const ELEMENT *dy, const ELEMENT *x, ELEMENT *dx, Flat flat) {
    FOR_EACH_LOAD(i, flat.loads) {
        float d[PER_LOAD], values[PER_LOAD], value, slope;
        load(dy + i * PER_LOAD, d);
        load(x + i * PER_LOAD, values);
        for (int j = 0; j < PER_LOAD; j++) {
            activation(values[j], value, slope);
            d[j] *= slope;
        }
        store(dx + i * PER_LOAD, d);
    }
}
#endif

struct Rope {
    u32 width;       // heads * head_dim
    u32 head_dim;
    u32 half;        // angles of a token; 2 * half elements of a head turn
    u32 interleaved; // pairs of neighbours instead of halves
    float sign;      // -1 turns back
};

#ifdef FOR_rope
// A block takes a token.
LAUNCHED void rope(const ELEMENT *x, const float *cosines, const float *sines, ELEMENT *y,
                   Rope rope) {
    u64 row = (u64)blockIdx.x * rope.width;
    u64 angles = (u64)blockIdx.x * rope.half;
    u32 heads = rope.width / rope.head_dim, turned = 2 * rope.half;
    for (u32 i = threadIdx.x; i < heads * rope.half; i += blockDim.x) {
        u32 head = i / rope.half, pair = i % rope.half;
        u64 first = row + (u64)head * rope.head_dim + (rope.interleaved ? 2 * pair : pair);
        u64 second = first + (rope.interleaved ? 1 : rope.half);
        float c = cosines[angles + pair], s = rope.sign * sines[angles + pair];
        float a = widen(x[first]), b = widen(x[second]);
        narrow(a * c - b * s, y[first]);
        narrow(b * c + a * s, y[second]);
    }
    u32 still = rope.head_dim - turned;
    for (u32 i = threadIdx.x; i < heads * still; i += blockDim.x) {
        u64 place = row + (u64)(i / still) * rope.head_dim + turned + i % still;
        y[place] = x[place];
    }
}
#endif

struct Dropout {
    u64 elements;
    u64 threshold; // elements whose random word is below it become 0
    float keep;
    u32 key[2];
    u32 micro_batch;
    u32 step;
};

#ifdef FOR_dropout
// Philox4x32-10; a thread takes the 4 elements of a counter.
LAUNCHED void dropout(const ELEMENT *x, ELEMENT *y, Dropout dropout) {
    FOR_EACH_LOAD(place, (dropout.elements + 3) / 4) {
        u32 counter[4] = {(u32)place, (u32)(place >> 32), dropout.micro_batch, dropout.step};
        u32 key[2] = {dropout.key[0], dropout.key[1]};
        for (int round = 0; round < 10; round++) {
            u64 low = (u64)counter[0] * 0xD2511F53u, high = (u64)counter[2] * 0xCD9E8D57u;
            counter[0] = (u32)(high >> 32) ^ counter[1] ^ key[0];
            counter[1] = (u32)high;
            counter[2] = (u32)(low >> 32) ^ counter[3] ^ key[1];
            counter[3] = (u32)low;
            key[0] += 0x9E3779B9u;
            key[1] += 0xBB67AE85u;
        }
        for (int j = 0; j < 4; j++) {
            u64 i = place * 4 + j;
            if (i < dropout.elements) {
                bool kept = (u64)counter[j] >= dropout.threshold;
                narrow(kept ? widen(x[i]) * dropout.keep : 0.0f, y[i]);
            }
        }
    }
}
#endif

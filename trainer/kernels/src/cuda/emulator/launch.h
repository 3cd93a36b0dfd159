// The door of a kernel that was compiled for a host: ENTRY is its name.
#pragma once

namespace emulator {
template <class... A> struct Call {
    void (*kernel)(A...);
    void **arguments;
    template <size_t... I> void with(std::index_sequence<I...>) {
        kernel(*(typename std::decay<A>::type *)arguments[I]...);
    }
    static void run(void *self) { ((Call *)self)->with(std::index_sequence_for<A...>()); }
};

template <class... A> int launch(void (*kernel)(A...), const u32 *grid, u32 count, void **arguments,
                                 u32 order) {
    Call<A...> call{kernel, arguments};
    body = Call<A...>::run;
    body_arguments = &call;
    blockDim = Place{count, 1, 1};
    gridDim = Place{grid[0], grid[1], grid[2]};
    for (u32 z = 0; z < grid[2]; z++) {
        for (u32 y = 0; y < grid[1]; y++) {
            for (u32 x = 0; x < grid[0]; x++) {
                blockIdx = Place{x, y, z};
                if (!run_block(count, order)) {
                    return 1;
                }
            }
        }
    }
    return 0;
}
} // namespace emulator

// As cuLaunchKernel: each entry of `arguments` points at an argument. 0 where all blocks ended.
extern "C" int emulate(const u32 *grid, u32 threads, void **arguments, u32 order) {
    return emulator::launch(ENTRY, grid, threads, arguments, order);
}

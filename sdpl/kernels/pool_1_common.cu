// Bilinear attention pooling: one CUDA source for inference and training, in four files that are read as one, in order.
//
//   s[b,c,l]   = sum_k q[k] tanh(u[b,l,k] v[c,k])          u [B,L,K]  v [C,K]  q [K]
//   a[b,c,:]   = softmax over l of s[b,c,:]
//   e[b,c]     = sum_l a[b,c,l] g[b,l]                     g [B,L,E]
//   logit[b,c] = <e[b,c], t[c]> / max(|e[b,c]|, eps)       t [C,E]
//
// kernels/reference.py is the specification. Built by NVRTC without any include path (kernels/compile.py), and by a C++
// compiler through tests/support/emulator.h, which runs the same source on a CPU.
//
// u, v and g are float32, float16 or bfloat16; q, t and all results are float32, and so is every sum. Nothing is added
// with atomics: each result is summed by one thread or one warp in a fixed order, so two runs give the same bits.
//
// The cost is the tanh unit's (16 per clock and multiprocessor): everything else is arranged to stay below it.
//   - A block has one warp for each quarter of a multiprocessor. It takes tiles of 1 to 4 categories of one image, one
//     after the other; a warp takes a part of K, so that v and q stay in registers and each value of u is loaded once a
//     tile.
//   - A warp walks the locations in steps of TILE_L, the next ones on their way. Its lanes' sums of a step are exchanged
//     together (warp_sums), at 4 instructions for each instead of 10.
//   - In the same loop it pools the step before: e of four columns per thread, by a softmax that goes along (the weights
//     are those of the largest score so far). So only a tile's last step is pooled alone. A barrier a step.

// SDPL_POLYNOMIAL: of every LANE_K values, how many take tanh as a polynomial on the FMA pipe, beside the tanh unit; one fewer
// at every other location, so that both pipes are busy as long.

#ifndef SDPL_EXACT_TANH
#define SDPL_EXACT_TANH 0
#endif
#ifndef SDPL_POLYNOMIAL
#define SDPL_POLYNOMIAL 0
#endif

constexpr int WARP = 32;
constexpr int LANE_K = 8;                // values of K per lane and step
constexpr int STEP_K = WARP * LANE_K;    // values of K per warp and step
constexpr int TILE_L = 7;                // locations per step of a warp: the usual 49 and 196 are multiples of it
constexpr int FORWARD_THREADS = 128;
constexpr int FORWARD_WARPS = 4;         // one for each quarter of a multiprocessor
constexpr int FORWARD_BLOCKS = 3;        // per multiprocessor, by registers; the launcher makes no more
constexpr int POOL_E = 4;                // columns of E per thread and pass: 512 at once
constexpr int POOL_BESIDE = 4;           // locations of a step, its last, beside which the step before is pooled
constexpr int BACKWARD_THREADS = 64;
constexpr int BACKWARD_K = 4;            // values of K per thread in the backward kernels
constexpr int BACKWARD_TC = 4;           // categories per thread in backward_vq
constexpr unsigned ALL_LANES = 0xffffffffu;

struct half_bits { unsigned short bits; };
struct bfloat_bits { unsigned short bits; };
struct __align__(16) Words4 { unsigned w[4]; };

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(half_bits x) {
#ifdef SDPL_EMULATOR
  return emulator::half_to_float(x.bits);
#else
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#endif
}
__device__ __forceinline__ float to_float(bfloat_bits x) { return __uint_as_float((unsigned)x.bits << 16); }

__device__ __forceinline__ float fast_tanh(float x) {
#ifdef SDPL_EMULATOR
  return emulator::approximate_tanh(x);
#elif SDPL_EXACT_TANH
  return tanhf(x);
#else
  float y;  // largest relative error about 2^-11
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// threadIdx.x, read anew for each tile: what follows from it would otherwise be kept in registers over all tiles, and spill.
__device__ __forceinline__ int thread_of_tile() {
#ifdef SDPL_EMULATOR
  return threadIdx.x;
#else
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#endif
}

__device__ __forceinline__ float fast_exp(float x) {  // relative error about 2^-22 + |x| 2^-24
  x *= 1.44269504f;
#ifdef SDPL_EMULATOR
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

__device__ constexpr int min_of(int a, int b) { return a < b ? a : b; }

// (1 + tanh(x)) / 2, off by at most 2^-11.84: 1/2 + z Q(|z|) at z = x / POLYNOMIAL_RANGE, clipped at both ends.
constexpr float POLYNOMIAL_RANGE = 4.1f;
__device__ __forceinline__ float half_tanh(float x) {
  const float y = __saturatef(fabsf(x) * (1.f / POLYNOMIAL_RANGE));
  float p = -9.232326f / POLYNOMIAL_RANGE;
  p = fmaf(p, y, 37.88069f / POLYNOMIAL_RANGE);
  p = fmaf(p, y, -62.38373f / POLYNOMIAL_RANGE);
  p = fmaf(p, y, 51.11598f / POLYNOMIAL_RANGE);
  p = fmaf(p, y, -19.42416f / POLYNOMIAL_RANGE);
  p = fmaf(p, y, 0.500193f / POLYNOMIAL_RANGE);
  p = fmaf(p, y, 2.042855f / POLYNOMIAL_RANGE);
  return __saturatef(fmaf(x, p, 0.5f));
}

// LANE_K values of a row as they lie in memory: read ahead, and made floats when their turn comes.
template <typename T, bool ALIGNED>
struct Raw { Words4 words[LANE_K * sizeof(T) / sizeof(Words4)]; };
template <typename T>
struct Raw<T, false> { float x[LANE_K]; };

// Whole 16-byte words: K is a multiple of LANE_K, rows are 16-byte aligned, and k + LANE_K <= K.
template <typename T>
__device__ __forceinline__ void load_raw(const T* __restrict__ p, int k, int, Raw<T, true>& raw) {
#pragma unroll
  for (int part = 0; part < (int)(LANE_K * sizeof(T) / sizeof(Words4)); part++)
    raw.words[part] = reinterpret_cast<const Words4*>(p + k)[part];
}
// Any K and any address: values at or beyond K are 0, and tanh(0) adds nothing.
template <typename T>
__device__ __forceinline__ void load_raw(const T* __restrict__ p, int k, int K, Raw<T, false>& raw) {
#pragma unroll
  for (int i = 0; i < LANE_K; i++) raw.x[i] = k + i < K ? to_float(p[k + i]) : 0.f;
}

template <typename T>
__device__ __forceinline__ void unpack(const Raw<T, true>& raw, float (&x)[LANE_K]) {
#pragma unroll
  for (int i = 0; i < LANE_K / 2; i++) {
    const unsigned word = raw.words[0].w[i];
    x[2 * i] = to_float(T{(unsigned short)(word & 0xffffu)});
    x[2 * i + 1] = to_float(T{(unsigned short)(word >> 16)});
  }
}
__device__ __forceinline__ void unpack(const Raw<float, true>& raw, float (&x)[LANE_K]) {
#pragma unroll
  for (int i = 0; i < LANE_K; i++) x[i] = __uint_as_float(raw.words[i / 4].w[i % 4]);
}
template <typename T>
__device__ __forceinline__ void unpack(const Raw<T, false>& raw, float (&x)[LANE_K]) {
#pragma unroll
  for (int i = 0; i < LANE_K; i++) x[i] = raw.x[i];
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ void load_lane(const T* __restrict__ p, int k, int K, float (&x)[LANE_K]) {
  Raw<T, ALIGNED> raw;
  load_raw(p, k, K, raw);
  unpack(raw, x);
}

// POOL_E values of a row of g as they lie in memory, in whole words where ALIGNED; values at or beyond E are 0.
template <typename T, bool ALIGNED>
struct __align__(POOL_E * sizeof(T)) Columns { unsigned words[POOL_E * sizeof(T) / 4]; };
template <typename T>
struct Columns<T, false> { float x[POOL_E]; };

template <typename T>
__device__ __forceinline__ void load_columns(const T* __restrict__ p, int column, int E, Columns<T, true>& columns) {
  columns = *reinterpret_cast<const Columns<T, true>*>(p + min(column, E - POOL_E));
}
template <typename T>
__device__ __forceinline__ void load_columns(const T* __restrict__ p, int column, int E, Columns<T, false>& columns) {
#pragma unroll
  for (int i = 0; i < POOL_E; i++) columns.x[i] = column + i < E ? to_float(p[column + i]) : 0.f;
}

template <typename T>
__device__ __forceinline__ void unpack(const Columns<T, true>& columns, float (&x)[POOL_E]) {
#pragma unroll
  for (int i = 0; i < POOL_E / 2; i++) {
    x[2 * i] = to_float(T{(unsigned short)(columns.words[i] & 0xffffu)});
    x[2 * i + 1] = to_float(T{(unsigned short)(columns.words[i] >> 16)});
  }
}
__device__ __forceinline__ void unpack(const Columns<float, true>& columns, float (&x)[POOL_E]) {
#pragma unroll
  for (int i = 0; i < POOL_E; i++) x[i] = __uint_as_float(columns.words[i]);
}
template <typename T>
__device__ __forceinline__ void unpack(const Columns<T, false>& columns, float (&x)[POOL_E]) {
#pragma unroll
  for (int i = 0; i < POOL_E; i++) x[i] = columns.x[i];
}

// POOL_E values of a row of floats; those at or beyond E are not looked at. ALIGNED: whole 16-byte words.
template <bool ALIGNED>
__device__ __forceinline__ void load_few_t(const float* __restrict__ p, int column, int E, float (&x)[POOL_E]) {
  Columns<float, ALIGNED> columns;
  load_columns(p, column, E, columns);
  unpack(columns, x);
}

// Sums over the lanes of N values each, N a power of two: lane i has that of value i / (WARP/N). The lanes share the
// work: at each exchange one half keeps the one half of the values. 
template <int N>
__device__ __forceinline__ float warp_sums(float (&x)[N], int lane) {
  int many = N;
#pragma unroll
  for (int offset = WARP / 2; offset; offset >>= 1) {
    if (many == 1) {
      x[0] += __shfl_xor_sync(ALL_LANES, x[0], offset);
      continue;
    }
    many /= 2;
    const bool upper = lane & offset;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      if (i < many) {
        const float mine = upper ? x[i + many] : x[i], other = upper ? x[i] : x[i + many];
        x[i] = mine + __shfl_xor_sync(ALL_LANES, other, offset);
      }
  }
  return x[0];
}

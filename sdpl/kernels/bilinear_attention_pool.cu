// Bilinear attention pooling: one CUDA source for inference and training.
//
//   s[b,c,l]   = sum_k q[k] tanh(u[b,l,k] v[c,k])          u [B,L,K]  v [C,K]  q [K]
//   a[b,c,:]   = softmax over l of s[b,c,:]
//   e[b,c]     = sum_l a[b,c,l] g[b,l]                     g [B,L,E]
//   logit[b,c] = <e[b,c], t[c]> / max(|e[b,c]|, eps)       t [C,E]
//
// kernels/reference.py is the specification. Built by NVRTC without any include path (kernels/compile.py), and by a C++
// compiler through tests/kernels/emulator.h, which runs the same source on a CPU.
//
// u, v and g are float32, float16 or bfloat16; q, t and all results are float32, and so is every sum. Nothing is added
// with atomics: each result is summed by one thread or one warp in a fixed order, so two runs give the same bits.
//
// The cost is the tanh unit's (16 per clock and multiprocessor): everything else is arranged to stay below it.
//   - A warp scores TILE_L locations x TC categories at a time, its lanes side by side along K, 8 values per lane and
//     step, so a loaded u serves TC products and a loaded v serves TILE_L.
//   - Nothing is staged: u of one image (100 kB at L=49, K=1024, float16) lies in L1 and L2.
//   - The scores of a block's categories stay in shared memory; e is made a few columns per thread and never stored.

// SDPL_POLYNOMIAL: of every LANE_K values, how many take tanh as a polynomial on the FMA pipe, beside the tanh unit.

#ifndef SDPL_EXACT_TANH
#define SDPL_EXACT_TANH 0
#endif
#ifndef SDPL_POLYNOMIAL
#define SDPL_POLYNOMIAL 0
#endif

constexpr int WARP = 32;
constexpr int LANE_K = 8;                // values of K per lane and step
constexpr int STEP_K = WARP * LANE_K;    // values of K per warp and step
constexpr int TILE_L = 7;                // locations per warp and pass: 7 warps x 7 cover the usual 49
constexpr int FORWARD_THREADS = 224;
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

// (1 + tanh(POLYNOMIAL_RANGE u v)) / 2, off by at most 2^-11.84: z Q(|z|) at z = u v, clipped at both ends.
constexpr float POLYNOMIAL_RANGE = 4.1f;
__device__ __forceinline__ float half_tanh(float u, float v) {
  const float y = __saturatef(fabsf(u) * fabsf(v));
  float p = -9.232326f;
  p = fmaf(p, y, 37.88069f);
  p = fmaf(p, y, -62.38373f);
  p = fmaf(p, y, 51.11598f);
  p = fmaf(p, y, -19.42416f);
  p = fmaf(p, y, 0.500193f);
  p = fmaf(p, y, 2.042855f);
  return __saturatef(fmaf(u * v, p, 0.5f));
}

// LANE_K consecutive values from p[k], as floats; values at or beyond K are 0, and tanh(0) adds nothing.
// ALIGNED: K is a multiple of LANE_K and p is 16-byte aligned, so whole 16-byte words can be read.
template <bool ALIGNED>
__device__ __forceinline__ void load_lane(const float* __restrict__ p, int k, int K, float (&x)[LANE_K]) {
  if (ALIGNED) {
#pragma unroll
    for (int part = 0; part < 2; part++) {
      const Words4 words = *reinterpret_cast<const Words4*>(p + k + 4 * part);
#pragma unroll
      for (int i = 0; i < 4; i++) x[4 * part + i] = __uint_as_float(words.w[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < LANE_K; i++) x[i] = k + i < K ? p[k + i] : 0.f;
  }
}

template <bool ALIGNED, typename T>
__device__ __forceinline__ void load_lane(const T* __restrict__ p, int k, int K, float (&x)[LANE_K]) {
  if (ALIGNED) {
    const Words4 words = *reinterpret_cast<const Words4*>(p + k);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      x[2 * i] = to_float(T{(unsigned short)(words.w[i] & 0xffffu)});
      x[2 * i + 1] = to_float(T{(unsigned short)(words.w[i] >> 16)});
    }
  } else {
#pragma unroll
    for (int i = 0; i < LANE_K; i++) x[i] = k + i < K ? to_float(p[k + i]) : 0.f;
  }
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset; offset >>= 1) x += __shfl_xor_sync(ALL_LANES, x, offset);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int offset = WARP / 2; offset; offset >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, offset));
  return x;
}

// One warp: scores of locations l0 .. l0+TILE_L-1 and categories c0 .. c0+TC-1 into score[j * stride + l].
// POLYNOMIAL values of each LANE_K give 2 q half_tanh, which is q tanh + q: the scores of a category are all off by the
// same sum of q, which the softmax over locations does not see.
template <typename T, int TC, bool ALIGNED, int POLYNOMIAL>
__device__ __forceinline__ void score_tile(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                           int L, int C, int K, int l0, int c0, float* score, int stride) {
  const int lane = threadIdx.x % WARP;
  float sum[TILE_L][TC];
  int u_row[TILE_L], v_row[TC];  // offsets, 32 bits each: 64-bit addresses of every row would spill
  v += (size_t)c0 * K;
#pragma unroll
  for (int j = 0; j < TC; j++) v_row[j] = min(j, C - 1 - c0) * K;
#pragma unroll
  for (int i = 0; i < TILE_L; i++) {
    u_row[i] = min(l0 + i, L - 1) * K;
#pragma unroll
    for (int j = 0; j < TC; j++) sum[i][j] = 0.f;
  }

  for (int k = lane * LANE_K; k < K; k += STEP_K) {
    float q_k[LANE_K], v_k[TC][LANE_K];
    load_lane<ALIGNED>(q, k, K, q_k);
#pragma unroll
    for (int j = 0; j < TC; j++) load_lane<ALIGNED>(v + v_row[j], k, K, v_k[j]);
#pragma unroll
    for (int x = 0; x < POLYNOMIAL; x++) {
      q_k[x] *= 2.f;
#pragma unroll
      for (int j = 0; j < TC; j++) v_k[j][x] *= 1.f / POLYNOMIAL_RANGE;
    }
#pragma unroll
    for (int i = 0; i < TILE_L; i++) {
      float u_k[LANE_K];
      load_lane<ALIGNED>(u + u_row[i], k, K, u_k);
#pragma unroll
      for (int x = 0; x < LANE_K; x++)
#pragma unroll
        for (int j = 0; j < TC; j++) {
          const float y = x < POLYNOMIAL ? half_tanh(u_k[x], v_k[j][x]) : fast_tanh(u_k[x] * v_k[j][x]);
          sum[i][j] = fmaf(q_k[x], y, sum[i][j]);
        }
    }
  }
#pragma unroll
  for (int i = 0; i < TILE_L; i++)
#pragma unroll
    for (int j = 0; j < TC; j++) {
      const float total = warp_sum(sum[i][j]);
      if (lane == 0 && l0 + i < L && c0 + j < C) score[(size_t)j * stride + l0 + i] = total;
    }
}

// All scores of one image and TC categories, the block's warps side by side along L.
template <typename T, int TC, bool ALIGNED, int POLYNOMIAL>
__device__ __forceinline__ void score_block(const T* u, const T* v, const float* q, int L, int C, int K, int c0,
                                            float* score, int stride) {
  const int warps = blockDim.x / WARP;
  for (int l0 = (threadIdx.x / WARP) * TILE_L; l0 < L; l0 += warps * TILE_L)
    score_tile<T, TC, ALIGNED, POLYNOMIAL>(u, v, q, L, C, K, l0, c0, score, stride);
}

// Inference. Grid (ceil(C/TC), B). Shared memory: TC*L scores, then 2*TC*warps partial sums, floats.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void forward(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                        const T* __restrict__ g, const float* __restrict__ t, float* __restrict__ logits,
                                        float* __restrict__ attention, int L, int C, int K, int E, float eps,
                                        float* shared) {
  const int b = blockIdx.y, c0 = blockIdx.x * TC, here = min(TC, C - c0);
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
  float* score = shared;            // [TC][L]
  float* partial = shared + TC * L; // [2][TC][warps]

  score_block<T, TC, ALIGNED, SDPL_POLYNOMIAL>(u + (size_t)b * L * K, v, q, L, C, K, c0, score, L);
  __syncthreads();

  for (int j = warp; j < here; j += warps) {  // softmax over L, one warp per category
    float largest = score[j * L], sum = 0.f;
    for (int l = lane; l < L; l += WARP) largest = fmaxf(largest, score[j * L + l]);
    largest = warp_max(largest);
    for (int l = lane; l < L; l += WARP) {
      const float e = expf(score[j * L + l] - largest);
      score[j * L + l] = e;
      sum += e;
    }
    const float scale = 1.f / warp_sum(sum);
    for (int l = lane; l < L; l += WARP) {
      score[j * L + l] *= scale;
      if (attention) attention[((size_t)b * C + c0 + j) * L + l] = score[j * L + l];
    }
  }
  __syncthreads();

  float dot[TC], square[TC];  // over this thread's columns of E
#pragma unroll
  for (int j = 0; j < TC; j++) dot[j] = square[j] = 0.f;
  for (int column = threadIdx.x; column < E; column += blockDim.x) {
    float e[TC];
#pragma unroll
    for (int j = 0; j < TC; j++) e[j] = 0.f;
    const T* g_l = g + (size_t)b * L * E + column;
    for (int l = 0; l < L; l++, g_l += E) {
      const float value = to_float(*g_l);
#pragma unroll
      for (int j = 0; j < TC; j++)
        if (j < here) e[j] = fmaf(score[j * L + l], value, e[j]);
    }
#pragma unroll
    for (int j = 0; j < TC; j++)
      if (j < here) {
        dot[j] = fmaf(e[j], t[(size_t)(c0 + j) * E + column], dot[j]);
        square[j] = fmaf(e[j], e[j], square[j]);
      }
  }
#pragma unroll
  for (int j = 0; j < TC; j++) {
    const float d = warp_sum(dot[j]), n = warp_sum(square[j]);
    if (lane == 0) {
      partial[j * warps + warp] = d;
      partial[(TC + j) * warps + warp] = n;
    }
  }
  __syncthreads();
  if ((int)threadIdx.x < here) {
    float d = 0.f, n = 0.f;
    for (int w = 0; w < warps; w++) {
      d += partial[threadIdx.x * warps + w];
      n += partial[(TC + threadIdx.x) * warps + w];
    }
    logits[(size_t)b * C + c0 + threadIdx.x] = d / fmaxf(sqrtf(n), eps);
  }
}

// Training: u [B,L,K], v [C,K], q [K] -> s [B,C,L]. Grid (ceil(C/TC), B).
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void scores(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                       float* __restrict__ s, int L, int C, int K) {
  const int b = blockIdx.y, c0 = blockIdx.x * TC;
  score_block<T, TC, ALIGNED, 0>(u + (size_t)b * L * K, v, q, L, C, K, c0, s + ((size_t)b * C + c0) * L, L);
}

// Training, backward for u: du[b,l,k] = sum_c ds[b,c,l] q[k] v[c,k] (1 - tanh^2). Each thread owns BACKWARD_K values
// of k at TILE_L locations and walks the categories in order. Grid (ceil(K / (threads*BACKWARD_K)), ceil(L/TILE_L), B).
template <typename T>
__device__ __forceinline__ void backward_u(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                           const float* __restrict__ ds, float* __restrict__ du, int L, int C, int K) {
  const int b = blockIdx.z, l0 = blockIdx.y * TILE_L, k0 = (blockIdx.x * blockDim.x + threadIdx.x) * BACKWARD_K;
  if (k0 >= K) return;
  float u_l[TILE_L][BACKWARD_K], sum[TILE_L][BACKWARD_K], q_k[BACKWARD_K];
#pragma unroll
  for (int x = 0; x < BACKWARD_K; x++) {
    q_k[x] = k0 + x < K ? q[k0 + x] : 0.f;
#pragma unroll
    for (int i = 0; i < TILE_L; i++) {
      u_l[i][x] = k0 + x < K ? to_float(u[((size_t)b * L + min(l0 + i, L - 1)) * K + k0 + x]) : 0.f;
      sum[i][x] = 0.f;
    }
  }
  const float* ds_c = ds + (size_t)b * C * L;
  for (int c = 0; c < C; c++, v += K, ds_c += L) {
    float v_k[BACKWARD_K], d[TILE_L];
#pragma unroll
    for (int x = 0; x < BACKWARD_K; x++) v_k[x] = k0 + x < K ? to_float(v[k0 + x]) : 0.f;
#pragma unroll
    for (int i = 0; i < TILE_L; i++) d[i] = ds_c[min(l0 + i, L - 1)];
#pragma unroll
    for (int i = 0; i < TILE_L; i++)
#pragma unroll
      for (int x = 0; x < BACKWARD_K; x++) {
        const float y = fast_tanh(u_l[i][x] * v_k[x]);
        sum[i][x] = fmaf(d[i] * v_k[x], fmaf(-y, y, 1.f), sum[i][x]);
      }
  }
#pragma unroll
  for (int i = 0; i < TILE_L; i++)
#pragma unroll
    for (int x = 0; x < BACKWARD_K; x++)
      if (l0 + i < L && k0 + x < K) du[((size_t)b * L + l0 + i) * K + k0 + x] = q_k[x] * sum[i][x];
}

// Training, backward for v and q over a slice of the images, without atomics: the slices are added afterwards.
//   dv[slice,c,k]     = q[k] sum_{b in slice, l} ds[b,c,l] u[b,l,k] (1 - tanh^2)
//   dq[slice,tile,k]  = sum_{b in slice, l, c in tile} ds[b,c,l] tanh
// Each thread owns BACKWARD_K values of k and BACKWARD_TC categories.
// Grid (ceil(K / (threads*BACKWARD_K)), ceil(C/BACKWARD_TC), slices).
template <typename T>
__device__ __forceinline__ void backward_vq(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                            const float* __restrict__ ds, float* __restrict__ dv, float* __restrict__ dq,
                                            int B, int L, int C, int K, int per_slice) {
  constexpr int TC = BACKWARD_TC;
  const int c0 = blockIdx.y * TC, slice = blockIdx.z, k0 = (blockIdx.x * blockDim.x + threadIdx.x) * BACKWARD_K;
  if (k0 >= K) return;
  float v_c[TC][BACKWARD_K], sum_v[TC][BACKWARD_K], sum_q[BACKWARD_K];
#pragma unroll
  for (int x = 0; x < BACKWARD_K; x++) {
    sum_q[x] = 0.f;
#pragma unroll
    for (int j = 0; j < TC; j++) {
      v_c[j][x] = k0 + x < K ? to_float(v[(size_t)min(c0 + j, C - 1) * K + k0 + x]) : 0.f;
      sum_v[j][x] = 0.f;
    }
  }
  const int first = slice * per_slice, last = min(B, first + per_slice);
  for (int b = first; b < last; b++) {
    const T* u_b = u + (size_t)b * L * K;
    const float* ds_b = ds + (size_t)b * C * L;
    for (int l = 0; l < L; l++, u_b += K) {
      float u_k[BACKWARD_K], d[TC];
#pragma unroll
      for (int x = 0; x < BACKWARD_K; x++) u_k[x] = k0 + x < K ? to_float(u_b[k0 + x]) : 0.f;
#pragma unroll
      for (int j = 0; j < TC; j++) d[j] = c0 + j < C ? ds_b[(size_t)(c0 + j) * L + l] : 0.f;
#pragma unroll
      for (int j = 0; j < TC; j++)
#pragma unroll
        for (int x = 0; x < BACKWARD_K; x++) {
          const float y = fast_tanh(u_k[x] * v_c[j][x]);
          sum_q[x] = fmaf(d[j], y, sum_q[x]);
          sum_v[j][x] = fmaf(d[j] * u_k[x], fmaf(-y, y, 1.f), sum_v[j][x]);
        }
    }
  }
#pragma unroll
  for (int x = 0; x < BACKWARD_K; x++) {
    if (k0 + x >= K) break;
    const float q_k = q[k0 + x];
#pragma unroll
    for (int j = 0; j < TC; j++)
      if (c0 + j < C) dv[((size_t)slice * C + c0 + j) * K + k0 + x] = q_k * sum_v[j][x];
    dq[((size_t)slice * gridDim.y + blockIdx.y) * K + k0 + x] = sum_q[x];
  }
}

// Entry points, by name: what, type of u, v and g, categories per block, and how rows of K are read.
#ifdef SDPL_EMULATOR
#define SDPL_SHARED float* shared = emulator::shared_memory();
#else
#define SDPL_SHARED extern __shared__ float shared[];
#endif

// So many blocks must fit a multiprocessor's registers; without it the compiler spills to make room for more.
constexpr int BLOCKS_PER_SM = 2;

#define SDPL_ENTRY_TILED(TYPE, NAME, TC, ALIGNED, SUFFIX)                                                             \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, BLOCKS_PER_SM) forward_##NAME##_c##TC##_##SUFFIX(     \
      const TYPE* u, const TYPE* v, const float* q, const TYPE* g, const float* t, float* logits, float* attention,   \
      int L, int C, int K, int E, float eps) {                                                                        \
    SDPL_SHARED                                                                                                       \
    forward<TYPE, TC, ALIGNED>(u, v, q, g, t, logits, attention, L, C, K, E, eps, shared);                            \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, BLOCKS_PER_SM) scores_##NAME##_c##TC##_##SUFFIX(      \
      const TYPE* u, const TYPE* v, const float* q, float* s, int L, int C, int K) {                                  \
    scores<TYPE, TC, ALIGNED>(u, v, q, s, L, C, K);                                                                   \
  }

#define SDPL_ENTRIES(TYPE, NAME)                                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 1, true, aligned)                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 2, true, aligned)                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 1, false, any)                                                                         \
  extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 10) backward_u_##NAME(                               \
      const TYPE* u, const TYPE* v, const float* q, const float* ds, float* du, int L, int C, int K) {                \
    backward_u<TYPE>(u, v, q, ds, du, L, C, K);                                                                       \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 10) backward_vq_##NAME(                              \
      const TYPE* u, const TYPE* v, const float* q, const float* ds, float* dv, float* dq, int B, int L, int C, int K, \
      int per_slice) {                                                                                                \
    backward_vq<TYPE>(u, v, q, ds, dv, dq, B, L, C, K, per_slice);                                                    \
  }

#if SDPL_DTYPE == 32
SDPL_ENTRIES(float, f32)
#elif SDPL_DTYPE == 16
SDPL_ENTRIES(half_bits, f16)
SDPL_ENTRY_TILED(half_bits, f16, 4, true, aligned)  // with float32 its registers would spill
#elif SDPL_DTYPE == 17
SDPL_ENTRIES(bfloat_bits, bf16)
SDPL_ENTRY_TILED(bfloat_bits, bf16, 4, true, aligned)
#else
#error "SDPL_DTYPE must be 32 (float32), 16 (float16) or 17 (bfloat16)"
#endif

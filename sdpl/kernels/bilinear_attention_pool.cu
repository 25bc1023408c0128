// Bilinear attention pooling: one CUDA source for inference and training.
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
//   - A block has one warp for each quarter of a multiprocessor. It takes tiles of TC categories of one image, one after
//     the other; a warp takes a part of K, so that v and q stay in registers and each value of u is loaded once a tile.
//   - A warp walks the locations, TILE_L at a time, without a barrier; the next ones are on their way meanwhile. Its
//     lanes' sums of a location tile are exchanged together (warp_sums), at 4 instructions for each instead of 10.
//   - In the same loop it pools the tile before: e of four columns per thread, from the weights of the last softmax.
//     So pooling hides behind the tanh unit whatever order the warps run in; only a block's last tile is pooled alone.

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
constexpr int TILE_L = 7;                // locations per step of a warp: the usual 49 and 196 are multiples of it
constexpr int FORWARD_THREADS = 128;
constexpr int FORWARD_WARPS = 4;         // one for each quarter of a multiprocessor
constexpr int FORWARD_BLOCKS = 3;        // per multiprocessor, by registers; the launcher makes no more
constexpr int POOL_E = 4;                // columns of E per thread and pass: 512 at once
constexpr int POOL_AHEAD = 4;            // rows of g on their way beside the scores
constexpr int POOL_L = 16;               // rows of g on their way at once where a tile is pooled alone
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

// Sums over the lanes of N values each, N a power of two: lane i has that of value i / (WARP/N). The lanes share the
// work: at each exchange one half keeps the one half of the values. Each sum has the order of warp_sum, to the bit.
template <int N>
__device__ __forceinline__ float warp_sums(float (&x)[N]) {
  int many = N;
#pragma unroll
  for (int offset = WARP / 2; offset; offset >>= 1) {
    if (many == 1) {
      x[0] += __shfl_xor_sync(ALL_LANES, x[0], offset);
      continue;
    }
    many /= 2;
    const bool upper = threadIdx.x & offset;
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      if (i < many) {
        const float mine = upper ? x[i + many] : x[i], other = upper ? x[i] : x[i + many];
        x[i] = mine + __shfl_xor_sync(ALL_LANES, other, offset);
      }
  }
  return x[0];
}

// The pooling of one tile, of POOL_E columns per thread: e[j] = sum_l weight[l][j] g[l].
template <typename T, int TC, bool ALIGNED>
struct Pooling {
  const T* g;           // [L,E] of the tile's image
  const float* weight;  // [L][TC], shared
  const float* zero;    // [TILE_L][TC] zeros, shared
  int L, E, column, next;
  float e[TC][POOL_E];
  Columns<T, ALIGNED> rows[POOL_AHEAD];
  const T* row;            // of g, to be loaded next
  const float* of_row;     // the weights of the rows beside the present location tile

  __device__ __forceinline__ void start(int first_column) {
    column = first_column;
    next = 0;
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++) e[j][x] = 0.f;
  }
  __device__ __forceinline__ void add(const Columns<T, ALIGNED>& columns, const float* a) {
    float x_g[POOL_E];
    unpack(columns, x_g);
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++) e[j][x] = fmaf(a[j], x_g[x], e[j][x]);
  }
  __device__ __forceinline__ void load(int slot) {
    load_columns(row, column, E, rows[slot]);
    row += E;
  }

  // TILE_L rows beside TILE_L locations of the scores, without a branch: once there are no more, they weigh 0. For
  // L >= TILE_L. Rows that need guards have no registers left for this: `rest` takes all of them.
  __device__ __forceinline__ void begin() {
    row = g;
#pragma unroll
    for (int i = 0; i < POOL_AHEAD; i++)
      if (ALIGNED) load(i);
  }
  __device__ __forceinline__ void beside(int i) {
    if (!ALIGNED) return;
    if (i == 0) {
      row = g + (size_t)(min(next, L - TILE_L) + POOL_AHEAD) * E;
      of_row = next + TILE_L <= L ? weight + next * TC : zero;
      next = next + TILE_L <= L ? next + TILE_L : next;
    }
    if (i == TILE_L - POOL_AHEAD || (i > TILE_L - POOL_AHEAD && i % POOL_AHEAD == 0))
      row = g + (size_t)(min(next, L - TILE_L) + i % POOL_AHEAD) * E;
    add(rows[i % POOL_AHEAD], of_row + i * TC);
    load(i % POOL_AHEAD);
  }
  // The rows that are left: many at a time, and then with guards.
  __device__ __forceinline__ void rest() {
    constexpr int MANY = ALIGNED ? POOL_L * 2 / (int)sizeof(T) : 0;  // as many as registers allow
    for (; ALIGNED && next + MANY <= L; next += MANY) {
      Columns<T, ALIGNED> some[MANY + 1];
      row = g + (size_t)next * E;
#pragma unroll
      for (int i = 0; i < MANY; i++, row += E) load_columns(row, column, E, some[i]);
#pragma unroll
      for (int i = 0; i < MANY; i++) add(some[i], weight + (next + i) * TC);
    }
    for (; next < L; next += POOL_AHEAD) {
      Columns<T, ALIGNED> some[POOL_AHEAD];
#pragma unroll
      for (int i = 0; i < POOL_AHEAD; i++) load_columns(g + (size_t)min(next + i, L - 1) * E, column, E, some[i]);
#pragma unroll
      for (int i = 0; i < POOL_AHEAD; i++)
        if (next + i < L) add(some[i], weight + (next + i) * TC);
    }
  }
};

struct NoPooling {  // training's scores
  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void beside(int) {}
};

// Into how many parts the warps of a block cut K; those of one part share out the locations.
__device__ __forceinline__ int slices_of(int K) { return K > 2 * STEP_K ? 4 : K > STEP_K ? 2 : 1; }

// q_k tanh(u_k v_jk) of a lane's values added to sum[j]. POLYNOMIAL values of each LANE_K give 2 q half_tanh, which is
// q tanh + q: the scores of a category are all off by the same sum of q, which the softmax over locations does not see.
template <int TC, int POLYNOMIAL>
__device__ __forceinline__ void score_location(const float (&u)[LANE_K], const float (&v)[TC][LANE_K],
                                               const float (&q)[LANE_K], float* sum) {
#pragma unroll
  for (int j = 0; j < TC; j++) sum[j] = 0.f;
#pragma unroll
  for (int x = 0; x < LANE_K; x++)
#pragma unroll
    for (int j = 0; j < TC; j++) {
      const float y = x < POLYNOMIAL ? half_tanh(u[x], v[j][x]) : fast_tanh(u[x] * v[j][x]);
      sum[j] = fmaf(q[x], y, sum[j]);
    }
}

// A block: scores of all locations and of TC categories, as a part for each slice of K: partial [slices][L][TC], shared.
// u [L,K] of one image, v [here,K] of the tile's categories. Pools beside it.
template <typename T, int TC, bool ALIGNED, int POLYNOMIAL, typename Pool>
__device__ __forceinline__ void score_tile(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                           int L, int here, int K, float* partial, Pool& pool) {
  // Rows of u on their way: enough for 200 cycles, few enough for the registers.
  constexpr int AHEAD = TC > 1 ? 4 : ALIGNED && sizeof(T) == 2 ? 6 : 3;
  constexpr int VALUES = 8 * TC;  // TILE_L*TC sums of a location tile, padded for warp_sums
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, slices = slices_of(K), slice = warp % slices;
  const int first = warp / slices, teams = FORWARD_WARPS / slices;  // of locations
  partial += (size_t)slice * L * TC;
  for (int step = slice * STEP_K; step == slice * STEP_K || step < K; step += slices * STEP_K) {
    int k = step + lane * LANE_K;
    float q_k[LANE_K], v_k[TC][LANE_K];
    const bool inside = k < K;
    if (ALIGNED) k = min(k, K - LANE_K);  // such a lane reads others' values, times a q of 0
    load_lane<ALIGNED>(q, k, K, q_k);
#pragma unroll
    for (int j = 0; j < TC; j++) load_lane<ALIGNED>(v + (size_t)min(j, here - 1) * K, k, K, v_k[j]);
#pragma unroll
    for (int x = 0; x < LANE_K; x++) {
      if (ALIGNED && !inside) q_k[x] = 0.f;
      if (x < POLYNOMIAL) {
        q_k[x] *= 2.f;
#pragma unroll
        for (int j = 0; j < TC; j++) v_k[j][x] *= 1.f / POLYNOMIAL_RANGE;
      }
    }
    const bool again = step != slice * STEP_K;  // K has more than one step for each slice: add to what is there

    int l0 = first * TILE_L;
    const bool any = l0 + TILE_L <= L;
    Raw<T, ALIGNED> row[AHEAD];  // of the next locations
    if (any) {
#pragma unroll
      for (int i = 0; i < AHEAD; i++) load_raw(u + (size_t)(l0 + i) * K, k, K, row[i]);
      pool.begin();
    }
    for (; l0 + TILE_L <= L; l0 += teams * TILE_L) {
      const int following = l0 + (teams + 1) * TILE_L <= L ? l0 + teams * TILE_L : l0;
      const T* next_row = u + (size_t)(l0 + AHEAD) * K;
      float sum[VALUES];
#pragma unroll
      for (int i = 0; i < TILE_L; i++) {
        float u_k[LANE_K];
        unpack(row[i % AHEAD], u_k);
        if (i == TILE_L - AHEAD || (i > TILE_L - AHEAD && i % AHEAD == 0))
          next_row = u + (size_t)(following + i % AHEAD) * K;
        load_raw(next_row, k, K, row[i % AHEAD]);
        next_row += K;
        score_location<TC, POLYNOMIAL>(u_k, v_k, q_k, sum + i * TC);
        pool.beside(i);
      }
#pragma unroll
      for (int i = TILE_L * TC; i < VALUES; i++) sum[i] = 0.f;
      const float total = warp_sums<VALUES>(sum);
      const int value = lane / (WARP / VALUES);
      float* score = partial + l0 * TC + value;
      if (lane % (WARP / VALUES) == 0 && value < TILE_L * TC) *score = again ? *score + total : total;
    }
    for (int l = L / TILE_L * TILE_L + first; l < L; l += teams) {  // fewer than TILE_L are left
      float u_k[LANE_K], sum[TC];
      load_lane<ALIGNED>(u + (size_t)l * K, k, K, u_k);
      score_location<TC, POLYNOMIAL>(u_k, v_k, q_k, sum);
#pragma unroll
      for (int j = 0; j < TC; j++) {
        const float total = warp_sum(sum[j]);
        float* score = partial + l * TC + j;
        if (lane == 0) *score = again ? *score + total : total;
      }
    }
  }
}

// Which tiles a block takes: the same number as every other or one more, side by side. Tiles are counted image by image.
// Grid (multiprocessors, blocks on each): blocks that follow each other in x go to different multiprocessors.
struct Tiles {
  int many, b, tile, of_image;
  __device__ __forceinline__ Tiles(int B, int C, int TC) {
    const long long block = (long long)blockIdx.x * gridDim.y + blockIdx.y, blocks = (long long)gridDim.x * gridDim.y;
    of_image = (C + TC - 1) / TC;
    const long long all = (long long)B * of_image, first = all * block / blocks;
    many = (int)(all * (block + 1) / blocks - first);
    b = (int)(first / of_image);
    tile = (int)(first % of_image);
  }
  __device__ __forceinline__ void next() {
    if (++tile == of_image) {
      tile = 0;
      b++;
    }
  }
};

// Inference. Shared memory: partial scores [4][L][TC], weights [L][TC], zeros [TILE_L][TC], sums [4][2*TC], floats.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void forward(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                        const T* __restrict__ g, const float* __restrict__ t, float* __restrict__ logits,
                                        float* __restrict__ attention, int B, int L, int C, int K, int E, float eps,
                                        float* shared) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, slices = slices_of(K);
  float* partial = shared;
  float* weight = partial + FORWARD_WARPS * L * TC;
  float* zero = weight + L * TC;
  float* sums = zero + TILE_L * TC;
  if (threadIdx.x < TILE_L * TC) zero[threadIdx.x] = 0.f;

  Tiles at(B, C, TC);
  Pooling<T, TC, ALIGNED> pool{g, weight, zero, L, E};
  int b_before = 0, c_before = 0;
  // Each round scores a tile and pools the one before it. What the first round pools is nothing, and not looked at.
  for (int n = 0; n <= at.many; n++) {
    const int c0 = at.tile * TC;
    pool.start(threadIdx.x * POOL_E);
    if (n < at.many) {
      if (n == 0) pool.g = g + (size_t)at.b * L * E;  // brings g near, for the next round
      score_tile<T, TC, ALIGNED, SDPL_POLYNOMIAL>(u + (size_t)at.b * L * K, v + (size_t)c0 * K, q, L, min(TC, C - c0), K,
                                                  partial, pool);
    }
    if (n > 0) {
      float of_e[2 * TC];  // <e, t> and <e, e> over this thread's columns
#pragma unroll
      for (int j = 0; j < 2 * TC; j++) of_e[j] = 0.f;
      for (;;) {
        pool.rest();
#pragma unroll
        for (int j = 0; j < TC; j++) {
          const float* t_c = t + (size_t)min(c_before + j, C - 1) * E;
#pragma unroll
          for (int x = 0; x < POOL_E; x++)
            if (pool.column + x < E) {
              of_e[j] = fmaf(pool.e[j][x], t_c[pool.column + x], of_e[j]);
              of_e[TC + j] = fmaf(pool.e[j][x], pool.e[j][x], of_e[TC + j]);
            }
        }
        if (pool.column + FORWARD_THREADS * POOL_E >= E) break;
        pool.start(pool.column + FORWARD_THREADS * POOL_E);
      }
      const float total = warp_sums<2 * TC>(of_e);
      if (lane % (WARP / (2 * TC)) == 0) sums[warp * 2 * TC + lane / (WARP / (2 * TC))] = total;
    }
    __syncthreads();  // the tile's scores are complete, and the sums of the one before

    const int j_last = (int)threadIdx.x - (FORWARD_THREADS - WARP);  // a lane of the last warp for each category
    if (n > 0 && j_last >= 0 && j_last < min(TC, C - c_before)) {
      float d = 0.f, square = 0.f;
#pragma unroll
      for (int w = 0; w < FORWARD_WARPS; w++) {
        d += sums[w * 2 * TC + j_last];
        square += sums[w * 2 * TC + TC + j_last];
      }
      logits[(size_t)b_before * C + c_before + j_last] = d / fmaxf(sqrtf(square), eps);
    }
    if (n == at.many) break;

    for (int j = (warp + n) % FORWARD_WARPS; j < TC; j += FORWARD_WARPS) {  // softmax over L, one warp per category, in turn
      float largest = __uint_as_float(0xff800000u), sum = 0.f;
      for (int l = lane; l < L; l += WARP) {
        float s = 0.f;
        for (int i = 0; i < slices; i++) s += partial[(i * L + l) * TC + j];
        weight[l * TC + j] = s;
        largest = fmaxf(largest, s);
      }
      largest = warp_max(largest);
      for (int l = lane; l < L; l += WARP) {
        const float e = expf(weight[l * TC + j] - largest);
        weight[l * TC + j] = e;
        sum += e;
      }
      const float scale = 1.f / warp_sum(sum);
      for (int l = lane; l < L; l += WARP) {
        const float a = weight[l * TC + j] * scale;
        weight[l * TC + j] = a;
        if (attention && c0 + j < C) attention[((size_t)at.b * C + c0 + j) * L + l] = a;
      }
    }
    __syncthreads();  // its weights are complete
    pool.g = g + (size_t)at.b * L * E;
    b_before = at.b;
    c_before = c0;
    at.next();
  }
}

// Training: u [B,L,K], v [C,K], q [K] -> s [B,C,L]. Shared memory: partial scores [4][L][TC], floats.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void scores(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                       float* __restrict__ s, int B, int L, int C, int K, float* partial) {
  Tiles at(B, C, TC);
  NoPooling none;
  for (int n = 0; n < at.many; n++, at.next()) {
    const int c0 = at.tile * TC, here = min(TC, C - c0);
    score_tile<T, TC, ALIGNED, 0>(u + (size_t)at.b * L * K, v + (size_t)c0 * K, q, L, here, K, partial, none);
    __syncthreads();
    for (int j = 0; j < here; j++)
      for (int l = threadIdx.x; l < L; l += FORWARD_THREADS) {
        float sum = 0.f;
        for (int i = 0; i < slices_of(K); i++) sum += partial[(i * L + l) * TC + j];
        s[((size_t)at.b * C + c0 + j) * L + l] = sum;
      }
    __syncthreads();
  }
}

// BACKWARD_K values of a row from p[k]. ALIGNED: K is a multiple of LANE_K and rows are 16-byte aligned, so in one word.
template <bool ALIGNED, typename T>
__device__ __forceinline__ void load_few(const T* __restrict__ p, int k, int K, float (&x)[BACKWARD_K]) {
  Columns<T, ALIGNED> columns;
  load_columns(p, k, K, columns);
  unpack(columns, x);
}

// Training, backward for u: du[b,l,k] = sum_c ds[b,c,l] q[k] v[c,k] (1 - tanh^2). Each thread owns BACKWARD_K values
// of k at TILE_L locations and walks the categories in order. Grid (ceil(K / (threads*BACKWARD_K)), ceil(L/TILE_L), B).
template <typename T, bool ALIGNED>
__device__ __forceinline__ void backward_u(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                           const float* __restrict__ ds, float* __restrict__ du, int L, int C, int K) {
  const int b = blockIdx.z, l0 = blockIdx.y * TILE_L, k0 = (blockIdx.x * blockDim.x + threadIdx.x) * BACKWARD_K;
  if (k0 >= K) return;
  float u_l[TILE_L][BACKWARD_K], sum[TILE_L][BACKWARD_K], q_k[BACKWARD_K];
  const float* ds_l[TILE_L];
  load_few<ALIGNED>(q, k0, K, q_k);
#pragma unroll
  for (int i = 0; i < TILE_L; i++) {
    const int l = min(l0 + i, L - 1);
    load_few<ALIGNED>(u + ((size_t)b * L + l) * K, k0, K, u_l[i]);
    ds_l[i] = ds + (size_t)b * C * L + l;
#pragma unroll
    for (int x = 0; x < BACKWARD_K; x++) sum[i][x] = 0.f;
  }
  for (int c = 0; c < C; c++, v += K) {
    float v_k[BACKWARD_K];
    load_few<ALIGNED>(v, k0, K, v_k);
#pragma unroll
    for (int i = 0; i < TILE_L; i++) {
      const float d = *ds_l[i];
      ds_l[i] += L;
#pragma unroll
      for (int x = 0; x < BACKWARD_K; x++) {
        const float y = fast_tanh(u_l[i][x] * v_k[x]);
        sum[i][x] = fmaf(d * v_k[x], fmaf(-y, y, 1.f), sum[i][x]);
      }
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
template <typename T, bool ALIGNED>
__device__ __forceinline__ void backward_vq(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                            const float* __restrict__ ds, float* __restrict__ dv, float* __restrict__ dq,
                                            int B, int L, int C, int K, int per_slice) {
  constexpr int TC = BACKWARD_TC;
  const int c0 = blockIdx.y * TC, slice = blockIdx.z, k0 = (blockIdx.x * blockDim.x + threadIdx.x) * BACKWARD_K;
  if (k0 >= K) return;
  float v_c[TC][BACKWARD_K], sum_v[TC][BACKWARD_K], sum_q[BACKWARD_K];
#pragma unroll
  for (int j = 0; j < TC; j++) load_few<ALIGNED>(v + (size_t)min(c0 + j, C - 1) * K, k0, K, v_c[j]);
#pragma unroll
  for (int x = 0; x < BACKWARD_K; x++) {
    sum_q[x] = 0.f;
#pragma unroll
    for (int j = 0; j < TC; j++) sum_v[j][x] = 0.f;
  }
  const int first = slice * per_slice, last = min(B, first + per_slice);
  for (int b = first; b < last; b++) {
    const T* u_l = u + (size_t)b * L * K;
    const float* ds_c[TC];
#pragma unroll
    for (int j = 0; j < TC; j++) ds_c[j] = ds + ((size_t)b * C + min(c0 + j, C - 1)) * L;
#pragma unroll 4  // so that addresses are shared
    for (int l = 0; l < L; l++, u_l += K) {
      float u_k[BACKWARD_K];
      load_few<ALIGNED>(u_l, k0, K, u_k);
#pragma unroll
      for (int j = 0; j < TC; j++) {
        const float d = ds_c[j][l] * (c0 + j < C ? 1.f : 0.f);
#pragma unroll
        for (int x = 0; x < BACKWARD_K; x++) {
          const float y = fast_tanh(u_k[x] * v_c[j][x]);
          const float of_q = d * y;
          sum_q[x] += of_q;
          sum_v[j][x] = fmaf(u_k[x], fmaf(-of_q, y, d), sum_v[j][x]);  // d (1 - y^2)
        }
      }
    }
  }
  float q_k[BACKWARD_K];
  load_few<ALIGNED>(q, k0, K, q_k);
#pragma unroll
  for (int x = 0; x < BACKWARD_K; x++) {
    if (k0 + x >= K) break;
#pragma unroll
    for (int j = 0; j < TC; j++)
      if (c0 + j < C) dv[((size_t)slice * C + c0 + j) * K + k0 + x] = q_k[x] * sum_v[j][x];
    dq[((size_t)slice * gridDim.y + blockIdx.y) * K + k0 + x] = sum_q[x];
  }
}

// Entry points, by name: what, type of u, v and g, categories per block, and how rows of K are read.
#ifdef SDPL_EMULATOR
#define SDPL_SHARED float* shared = emulator::shared_memory();
#else
#define SDPL_SHARED extern __shared__ float shared[];
#endif

#define SDPL_ENTRY_TILED(TYPE, NAME, TC, ALIGNED, SUFFIX)                                                             \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) forward_##NAME##_c##TC##_##SUFFIX(     \
      const TYPE* u, const TYPE* v, const float* q, const TYPE* g, const float* t, float* logits, float* attention,   \
      int B, int L, int C, int K, int E, float eps) {                                                                 \
    SDPL_SHARED                                                                                                       \
    forward<TYPE, TC, ALIGNED>(u, v, q, g, t, logits, attention, B, L, C, K, E, eps, shared);                         \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) scores_##NAME##_c##TC##_##SUFFIX(      \
      const TYPE* u, const TYPE* v, const float* q, float* s, int B, int L, int C, int K) {                           \
    SDPL_SHARED                                                                                                       \
    scores<TYPE, TC, ALIGNED>(u, v, q, s, B, L, C, K, shared);                                                        \
  }

#define SDPL_ENTRY_BACKWARD(TYPE, NAME, ALIGNED, SUFFIX)                                                              \
  extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 7) backward_u_##NAME##_##SUFFIX(                     \
      const TYPE* u, const TYPE* v, const float* q, const float* ds, float* du, int L, int C, int K) {                \
    backward_u<TYPE, ALIGNED>(u, v, q, ds, du, L, C, K);                                                              \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(BACKWARD_THREADS, 7) backward_vq_##NAME##_##SUFFIX(                    \
      const TYPE* u, const TYPE* v, const float* q, const float* ds, float* dv, float* dq, int B, int L, int C, int K,\
      int per_slice) {                                                                                                \
    backward_vq<TYPE, ALIGNED>(u, v, q, ds, dv, dq, B, L, C, K, per_slice);                                           \
  }

#define SDPL_ENTRIES(TYPE, NAME)                                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 1, true, aligned)                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 2, true, aligned)                                                                      \
  SDPL_ENTRY_TILED(TYPE, NAME, 1, false, any)                                                                         \
  SDPL_ENTRY_BACKWARD(TYPE, NAME, true, aligned)                                                                      \
  SDPL_ENTRY_BACKWARD(TYPE, NAME, false, any)

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

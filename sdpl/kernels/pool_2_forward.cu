// The pooling of one tile, of POOL_E columns per thread: e[j] = sum_l weight[l][j] g[l].
template <typename T, int TC, bool ALIGNED>
struct Pooling {
  const T* g;           // [L,E] of the tile's image
  const float* weight;  // [L][TC], shared
  const float* zero;    // [TILE_L][TC] zeros, shared
  int L, E, column, next;
  bool live;            // whether there is a tile to pool
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
    if (SDPL_LARGE_L1 || live) load_columns(row, column, E, rows[slot]);
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
  constexpr int AHEAD = TC > 1 ? 4 : !ALIGNED ? 3 : sizeof(T) == 2 ? 6 : 4;
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

// Inference. Shared memory: partial scores [4][L][TC], weights [L][TC], zeros [4][TILE_L][TC], sums [4][2*TC], floats.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void forward(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                        const T* __restrict__ g, const float* __restrict__ t, float* __restrict__ logits,
                                        float* __restrict__ attention, int B, int L, int C, int K, int E, float eps,
                                        float* shared) {
  const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, slices = slices_of(K);
  float* partial = shared;
  float* weight = partial + FORWARD_WARPS * L * TC;
  float* zero = weight + L * TC + warp * TILE_L * TC;  // each warp has its own, so that none waits for another
  float* sums = weight + L * TC + FORWARD_WARPS * TILE_L * TC;
  if (lane < TILE_L * TC) zero[lane] = 0.f;
  __syncwarp();

  Tiles at(B, C, TC);
  Pooling<T, TC, ALIGNED> pool{g, weight, zero, L, E, 0, 0, false};
  int b_before = 0, c_before = 0;
  // Each round scores a tile and pools the one before it. In the first there is nothing to pool: what comes of it is not
  // looked at, and its loads only bring g near for the next round, where L1 is large enough to keep it.
  for (int n = 0; n <= at.many; n++) {
    const int c0 = at.tile * TC;
    pool.start(threadIdx.x * POOL_E);
    if (n < at.many) {
      if (SDPL_LARGE_L1 && n == 0) pool.g = g + (size_t)at.b * L * E;
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
    pool.live = true;
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

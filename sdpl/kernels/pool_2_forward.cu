// Locations go in steps of TILE_L. The last step overlaps the one before where L is no multiple: it begins here, and only
// what lies at or beyond index * TILE_L (and before L) counts.
__device__ __forceinline__ int first_of_step(int index, int L) { return max(0, min(index * TILE_L, L - TILE_L)); }
__device__ __forceinline__ int steps_of(int L) { return (L + TILE_L - 1) / TILE_L; }

// Into how many parts the warps of a block cut K; those of one part share out the locations.
__device__ __forceinline__ int slices_of(int K) { return K > 2 * STEP_K ? 4 : K > STEP_K ? 2 : 1; }

// Floats between two locations of a tile's scores and weights.
__device__ constexpr int padded(int TC) { return TC == 3 ? 4 : TC; }

// The softmax and the pooling of one tile, of POOL_E columns per thread, as the scores come in: with w = exp(s - largest)
// of the largest score so far, e[j] = sum_l w[l][j] g[l] and sum[j] = sum_l w[l][j]; both shrink when a larger score comes.
// Each warp works the weights out for itself.
template <typename T, int TC, bool ALIGNED>
struct Pooling {
  static constexpr int PAD = padded(TC), GROUP = (TILE_L + 1) * PAD;  // lanes that have the values of a step
  const T* g;            // [L,E] of the tile's image
  const float* partial;  // [slices][L][PAD], shared
  float* weight;         // [TILE_L][PAD] of a step, then what shrinks e; of this warp, shared
  int L, E, slices, lane;
  bool beside;           // whether the steps are pooled beside the scores, or all of them by `step` afterwards
  int column;
  float e[TC][POOL_E];
  float largest, sum;    // of category lane % PAD; sum over the lanes of a group
  Columns<T, ALIGNED> rows[TILE_L];  // of g, on their way
  const T* row;          // to be loaded next

  __device__ __forceinline__ void start(int first_column) {
    column = first_column;
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++) e[j][x] = 0.f;
  }
  __device__ __forceinline__ float score(int l, int j, int many) const {  // s[l][j], of so many parts
    float s = 0.f;
#pragma unroll
    for (int i = 0; i < FORWARD_WARPS; i++)
      if (i < many) s += partial[(i * L + l) * PAD + j];
    return s;
  }
  // The weights of the step at l0, of its locations at or beyond `from`: others weigh 0, and their scores are not read.
  // Lane i * PAD + j has location i, and lane TILE_L * PAD + j what is pooled already.
  __device__ __forceinline__ void weigh(int l0, int from, int many) {
    const int i = lane % GROUP / PAD, j = lane % PAD;
    const bool counts = i < min(TILE_L, L) && j < TC && i >= from;
    const float of_parts = score(l0 + i, j, counts ? many : 0), s = counts ? of_parts : __uint_as_float(0xff800000u);
    float most = s;
#pragma unroll
    for (int offset = PAD; offset < GROUP; offset *= 2) most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, offset));
    most = fmaxf(most, largest);
    const float shrink = fast_exp(largest - most), w = i < TILE_L ? fast_exp(s - most) : shrink;
    sum = fmaf(sum, shrink, i < TILE_L ? w : 0.f);
    largest = most;
    __syncwarp();  // the weights before have been read
    if (lane < GROUP) weight[lane] = w;
    __syncwarp();
  }
  __device__ __forceinline__ void shrink_e() {
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++) e[j][x] *= weight[TILE_L * PAD + j];
  }
  __device__ __forceinline__ void add(const Columns<T, ALIGNED>& columns, int i) {
    float x_g[POOL_E];
    unpack(columns, x_g);
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++) e[j][x] = fmaf(weight[i * PAD + j], x_g[x], e[j][x]);
  }

  // Beside the scores of step `index` its forerunner is pooled, which is never the last one: its weights once the first
  // location is scored, its rows with the last POOL_BESIDE locations. The rows are sent for in time: a step ahead, or in
  // large tiles, which are slow and full of registers, at its start. Beside the first step, and where nothing is pooled
  // beside, rows weigh 0: they are the image's own all the same, since 0 times infinity is NaN.
  static constexpr bool STEP_AHEAD = TC * sizeof(T) < 6;
  __device__ __forceinline__ void begin() {
#pragma unroll
    for (int i = 0; i < TILE_L; i++) rows[i] = {};
  }
  __device__ __forceinline__ void beside_location(int i, int index) {
    if (!ALIGNED) return;  // rows that need guards have no registers left for this
    constexpr int FROM = TILE_L - POOL_BESIDE;
    const int before = beside ? max(index - 1, 0) * TILE_L : 0;
    if (i == 0) {
      row = g + unsigned(before * E);
#pragma unroll
      for (int r = 0; r < TILE_L; r++, row += E)
        if (!STEP_AHEAD) load_columns(row, column, E, rows[r]);
      __syncthreads();  // the scores of the step before are complete
      weigh(before, beside && index > 0 ? 0 : TILE_L, FORWARD_WARPS);
    }
    if (i == FROM) shrink_e();
    if (i == FROM && STEP_AHEAD) row = g + unsigned(first_of_step(index, L) * E);
    if (i >= FROM)
#pragma unroll
      for (int r = TILE_L * (i - FROM) / POOL_BESIDE; r < TILE_L * (i - FROM + 1) / POOL_BESIDE; r++) {
        add(rows[r], r);
        if (STEP_AHEAD) {
          load_columns(row, column, E, rows[r]);
          row += E;
        }
      }
  }
  // One step, alone.
  __device__ __forceinline__ void step(int index) {
    Columns<T, ALIGNED> some[TILE_L];
    const int l0 = first_of_step(index, L);
#pragma unroll
    for (int i = 0; i < TILE_L; i++) load_columns(g + (size_t)min(l0 + i, L - 1) * E, column, E, some[i]);
    weigh(l0, index * TILE_L - l0, slices);
    shrink_e();
#pragma unroll
    for (int i = 0; i < TILE_L; i++) add(some[i], i);
  }
};

struct NoPooling {  // training's scores
  __device__ __forceinline__ void begin() {}
  __device__ __forceinline__ void beside_location(int, int) {}
};

// What the forward kernels read.
template <typename T>
struct Inputs {
  const T* __restrict__ u;      // [B,L,K]
  const T* __restrict__ v;      // [C,K]
  const float* __restrict__ q;  // [K]
  const T* __restrict__ g;      // [B,L,E]
  const float* __restrict__ t;  // [C,E]
  int L, C, K, E;
  float eps;
};

// Of LANE_K values, those that are polynomials at location i of a step.
__device__ constexpr int polynomials(int most, int i) { return most - (most > 0 && i % 2 == 0); }

// q_k tanh(u_k v_jk) of a lane's values added up in sum[j]. The first `many` of them are 2 q half_tanh - q.
template <int TC>
__device__ __forceinline__ void score_location(const float (&u)[LANE_K], const float (&v)[TC][LANE_K],
                                               const float (&q)[LANE_K], int many, float* sum) {
  float start = 0.f;
#pragma unroll
  for (int x = 0; x < LANE_K; x++)
    if (x < many) start -= q[x];
#pragma unroll
  for (int j = 0; j < TC; j++) sum[j] = start;
#pragma unroll
  for (int x = 0; x < LANE_K; x++)
#pragma unroll
    for (int j = 0; j < TC; j++) {
      const float z = u[x] * v[j][x];
      sum[j] = x < many ? fmaf(2.f * q[x], half_tanh(z), sum[j]) : fmaf(q[x], fast_tanh(z), sum[j]);
    }
}

// A block: scores of all locations and of TC categories, as a part for each slice of K: partial [slices][L][padded], shared.
// u [L,K] of one image, v [TC,K] of the tile's categories. Pools beside it.
template <typename T, int TC, bool ALIGNED, int POLYNOMIAL, typename Pool>
__device__ __forceinline__ void score_tile(const T* __restrict__ u, const T* __restrict__ v, const float* __restrict__ q,
                                           int L, int K, int thread, float* partial, Pool& pool) {
  // Rows of u on their way: enough for 200 cycles, few enough for the registers.
  constexpr int AHEAD = TC > 1 ? 4 : !ALIGNED ? 3 : sizeof(T) == 2 ? 6 : 4;
  constexpr int PAD = padded(TC), VALUES = (TILE_L + 1) * PAD;  // TILE_L*TC sums of a step, padded for warp_sums
  const int lane = thread % WARP, warp = thread / WARP, slices = slices_of(K), slice = warp % slices;
  const int first = warp / slices, teams = FORWARD_WARPS / slices, steps = steps_of(L);  // teams: of locations
  partial += (size_t)slice * L * PAD;
  for (int part = slice * STEP_K; part - slice * STEP_K < K; part += slices * STEP_K) {
    int k = part + lane * LANE_K;
    float q_k[LANE_K], v_k[TC][LANE_K];
    const bool inside = k < K;
    if (ALIGNED) k = min(k, K - LANE_K);  // such a lane reads others' values, times a q of 0
    load_lane<ALIGNED>(q, k, K, q_k);
#pragma unroll
    for (int j = 0; j < TC; j++) load_lane<ALIGNED>(v + (size_t)j * K, k, K, v_k[j]);
#pragma unroll
    for (int x = 0; x < LANE_K; x++) {
      if (ALIGNED && !inside) q_k[x] = 0.f;
    }
    const bool again = part != slice * STEP_K;  // K has more than one part for each slice: add to what is there

    int l0 = first_of_step(first, L), l_row = l0;
    const T* next_row = u + (size_t)l0 * K;
    Raw<T, ALIGNED> row[AHEAD];  // of the next locations
    auto load = [&](Raw<T, ALIGNED>& raw) {
      load_raw(next_row, k, K, raw);
      if (ALIGNED || ++l_row < L) next_row += K;
    };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) load(row[i]);
    pool.begin();
    for (int index = first; index - first < steps; index += teams) {  // as often for each warp
      const int following = first_of_step(index + teams, L);
      float sum[VALUES];
#pragma unroll
      for (int i = 0; i < VALUES; i++) sum[i] = 0.f;
#pragma unroll
      for (int i = 0; i < TILE_L; i++) {
        float u_k[LANE_K];
        unpack(row[i % AHEAD], u_k);
        if (i == 0 || i == TILE_L - AHEAD || (i > TILE_L - AHEAD && i % AHEAD == 0)) {  // slot i % AHEAD has row i % AHEAD
          l_row = min(i < TILE_L - AHEAD ? l0 + AHEAD : following + i % AHEAD, L - 1);
          next_row = u + unsigned(l_row * K);
        }
        load(row[i % AHEAD]);
        score_location<TC>(u_k, v_k, q_k, polynomials(POLYNOMIAL, i), sum + i * PAD);
        pool.beside_location(i, index);
      }
      const float total = warp_sums<VALUES>(sum, lane);
      const int value = lane / (WARP / VALUES);
      const bool has = lane % (WARP / VALUES) == 0 && value / PAD < min(TILE_L, L) && value % PAD < TC;
      float* score = partial + l0 * PAD + value;
      if ((has ? value / PAD : -1) >= index * TILE_L - l0) *score = again ? *score + total : total;
      l0 = following;
    }
  }
}

// The pairs of image and category that a block takes, cut into tiles of one image and at most `most` categories. Pairs are
// counted image by image; `each` of them, side by side, are of a multiprocessor, whose blocks share them out.
// Grid (multiprocessors, blocks on each): blocks that follow each other in x go to different multiprocessors.
struct Pairs {
  unsigned left, b, c;
  __device__ __forceinline__ Pairs(unsigned B, unsigned C, unsigned each) {
    const unsigned here = min(each, B * C - blockIdx.x * each), before = here * blockIdx.y / gridDim.y;
    const unsigned first = blockIdx.x * each + before;
    left = here * (blockIdx.y + 1) / gridDim.y - before;
    b = first / C;
    c = first - b * C;
  }
  __device__ __forceinline__ int tile(unsigned C, unsigned most) const {  // the last two of an image are as equal as possible
    const unsigned of_image = min(left, C - c);
    return of_image <= most ? of_image : of_image < 2 * most ? (of_image + 1) / 2 : most;
  }
  __device__ __forceinline__ void next(unsigned C, int tile) {
    left -= tile;
    c += tile;
    if (c == C) {
      c = 0;
      b++;
    }
  }
};

// Inference, one tile. Shared memory, in floats: partial scores [4][L][padded(TC)], weights [4][8*padded(TC)], sums
// [4][2*padded(TC)]. The sums are read after a tile's last barrier: nothing may be written into their place before the next
// tile's first one, which aligned tiles, of other sizes, have before their first score.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void forward_tile(const Inputs<T>& in, float* __restrict__ logits, float* __restrict__ attention,
                                             int b, int c, float* shared) {
  constexpr int PAD = padded(TC);
  const int thread = thread_of_tile(), warp = thread / WARP, lane = thread % WARP;
  const int slices = slices_of(in.K), L = in.L, E = in.E;
  float *partial = shared, *weight = partial + FORWARD_WARPS * L * PAD, *sums = weight + FORWARD_WARPS * (TILE_L + 1) * PAD;
  // Where each warp goes through all locations and all of its K at once, steps are pooled beside the scores.
  const bool beside = ALIGNED && slices == FORWARD_WARPS && in.K <= FORWARD_WARPS * STEP_K;
  Pooling<T, TC, ALIGNED> pool{in.g + (size_t)b * L * E, partial, weight + warp * (TILE_L + 1) * PAD, L, E, slices, lane,
                               beside};
  pool.largest = -3.4e38f;
  pool.sum = 0.f;
  pool.start(thread * POOL_E);
  score_tile<T, TC, ALIGNED, SDPL_POLYNOMIAL>(in.u + (size_t)b * L * in.K, in.v + (size_t)c * in.K, in.q, L, in.K, thread, partial,
                                              pool);
  float of_e[2 * PAD];  // <e, t> and <e, e> over this thread's columns
  float total = 0.f;    // of the weights
#pragma unroll
  for (int j = 0; j < 2 * PAD; j++) of_e[j] = 0.f;
  for (int index = beside ? steps_of(L) - 1 : 0;;) {
    float t_c[TC][POOL_E];
#pragma unroll
    for (int j = 0; j < TC; j++) load_few_t<ALIGNED>(in.t + (size_t)(c + j) * E, pool.column, E, t_c[j]);
    if (pool.column == thread * POOL_E) __syncthreads();  // the scores are complete
    for (; index < steps_of(L); index++) pool.step(index);
#pragma unroll
    for (int j = 0; j < TC; j++)
#pragma unroll
      for (int x = 0; x < POOL_E; x++)
        if (pool.column + (ALIGNED ? 0 : x) < E) {
          of_e[j] = fmaf(pool.e[j][x], t_c[j][x], of_e[j]);
          of_e[PAD + j] = fmaf(pool.e[j][x], pool.e[j][x], of_e[PAD + j]);
        }
    if (pool.column == thread * POOL_E) total = pool.sum;
    if (pool.column - thread * POOL_E + FORWARD_THREADS * POOL_E >= E) break;
    pool.start(pool.column + FORWARD_THREADS * POOL_E);
    index = 0;
  }
#pragma unroll
  for (int offset = PAD; offset < pool.GROUP; offset *= 2) total += __shfl_xor_sync(ALL_LANES, total, offset);
  const float scale = 1.f / total;  // of category lane % PAD
  if (attention && lane % PAD < TC)
    for (int l = thread / PAD; l < L; l += FORWARD_THREADS / PAD)
      attention[((size_t)b * in.C + c + lane % PAD) * L + l] =
          scale * fast_exp(pool.score(l, lane % PAD, slices) - pool.largest);

  const float of_warp = warp_sums<2 * PAD>(of_e, lane);
  if (lane % (WARP / (2 * PAD)) == 0) sums[warp * 2 * PAD + lane / (WARP / (2 * PAD))] = of_warp;
  __syncthreads();  // the sums are complete
  if (warp == FORWARD_WARPS - 1 && lane < TC) {
    float d = 0.f, square = 0.f;
#pragma unroll
    for (int w = 0; w < FORWARD_WARPS; w++) {
      d += sums[w * 2 * PAD + lane];
      square += sums[w * 2 * PAD + PAD + lane];
    }
    logits[(size_t)b * in.C + c + lane] = scale * d / fmaxf(scale * sqrtf(square), in.eps);
  }
}

// Inference. MOST: categories of a tile at most.
template <typename T, int MOST, bool ALIGNED>
__device__ __forceinline__ void forward(const Inputs<T>& in, float* logits, float* attention, int B, int each, int most, float* shared) {
  for (Pairs run(B, in.C, each); run.left;) {
    const int b = run.b, c = run.c, tile = run.tile(in.C, most);
    run.next(in.C, tile);
    if (tile == 1) forward_tile<T, 1, ALIGNED>(in, logits, attention, b, c, shared);
    if (MOST > 1 && tile == 2) forward_tile<T, min_of(2, MOST), ALIGNED>(in, logits, attention, b, c, shared);
    if (MOST > 2 && tile == 3) forward_tile<T, min_of(3, MOST), ALIGNED>(in, logits, attention, b, c, shared);
    if (MOST > 3 && tile == 4) forward_tile<T, min_of(4, MOST), ALIGNED>(in, logits, attention, b, c, shared);
  }
}

// Training, one tile: s [B,C,L]. Shared memory: partial scores [4][L][padded(TC)], floats.
template <typename T, int TC, bool ALIGNED>
__device__ __forceinline__ void scores_tile(const Inputs<T>& in, float* __restrict__ s, int b, int c, float* partial) {
  constexpr int PAD = padded(TC);
  const int L = in.L, thread = thread_of_tile();
  NoPooling none;
  score_tile<T, TC, ALIGNED, 0>(in.u + (size_t)b * L * in.K, in.v + (size_t)c * in.K, in.q, L, in.K, thread, partial, none);
  __syncthreads();
#pragma unroll
  for (int j = 0; j < TC; j++)
    for (int l = thread; l < L; l += FORWARD_THREADS) {
      float sum = 0.f;
      for (int i = 0; i < slices_of(in.K); i++) sum += partial[(i * L + l) * PAD + j];
      s[((size_t)b * in.C + c + j) * L + l] = sum;
    }
  __syncthreads();
}

template <typename T, int MOST, bool ALIGNED>
__device__ __forceinline__ void scores(const Inputs<T>& in, float* s, int B, int each, int most, float* shared) {
  for (Pairs run(B, in.C, each); run.left;) {
    const int b = run.b, c = run.c, tile = run.tile(in.C, most);
    run.next(in.C, tile);
    if (tile == 1) scores_tile<T, 1, ALIGNED>(in, s, b, c, shared);
    if (MOST > 1 && tile == 2) scores_tile<T, min_of(2, MOST), ALIGNED>(in, s, b, c, shared);
    if (MOST > 2 && tile == 3) scores_tile<T, min_of(3, MOST), ALIGNED>(in, s, b, c, shared);
    if (MOST > 3 && tile == 4) scores_tile<T, min_of(4, MOST), ALIGNED>(in, s, b, c, shared);
  }
}

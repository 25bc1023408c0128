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

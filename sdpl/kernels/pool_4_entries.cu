// Entry points, by name: what, type of u, v and g, most categories per tile, and how rows of K are read.
#ifdef SDPL_EMULATOR
#define SDPL_SHARED float* shared = emulator::shared_memory();
#else
#define SDPL_SHARED extern __shared__ float shared[];
#endif

#define SDPL_ENTRY_TILED(TYPE, NAME, MOST, ALIGNED, SUFFIX)                                                           \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) forward_##NAME##_##SUFFIX(             \
      const TYPE* u, const TYPE* v, const float* q, const TYPE* g, const float* t, float* logits, float* attention,   \
      int B, int L, int C, int K, int E, int each, int most, float eps) {                                             \
    SDPL_SHARED                                                                                                       \
    forward<TYPE, MOST, ALIGNED>({u, v, q, g, t, L, C, K, E, eps}, logits, attention, B, each, most, shared);         \
  }                                                                                                                   \
  extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) scores_##NAME##_##SUFFIX(              \
      const TYPE* u, const TYPE* v, const float* q, float* s, int B, int L, int C, int K, int each, int most) {       \
    SDPL_SHARED                                                                                                       \
    scores<TYPE, MOST, ALIGNED>({u, v, q, nullptr, nullptr, L, C, K, 0, 0.f}, s, B, each, most, shared);              \
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

#define SDPL_ENTRIES(TYPE, NAME, MOST)                                                                                \
  SDPL_ENTRY_TILED(TYPE, NAME, MOST, true, aligned)                                                                   \
  SDPL_ENTRY_TILED(TYPE, NAME, 1, false, any)                                                                         \
  SDPL_ENTRY_BACKWARD(TYPE, NAME, true, aligned)                                                                      \
  SDPL_ENTRY_BACKWARD(TYPE, NAME, false, any)

#if SDPL_DTYPE == 32
SDPL_ENTRIES(float, f32, 2)  // with more its registers would spill
#elif SDPL_DTYPE == 16
SDPL_ENTRIES(half_bits, f16, 4)
#elif SDPL_DTYPE == 17
SDPL_ENTRIES(bfloat_bits, bf16, 4)
#else
#error "SDPL_DTYPE must be 32 (float32), 16 (float16) or 17 (bfloat16)"
#endif

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

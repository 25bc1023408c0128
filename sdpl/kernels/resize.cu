// Pillow's antialiased bicubic resize of 8-bit RGB, the same bits: images of any sizes -> [B,side,side,3].
//
// sdpl/preprocess/resize.py is the specification and makes the weights. Two passes, one along rows and one along columns,
// with a scratch image between; this kernel is one pass over images of any sizes. A thread makes one pixel; the threads
// of a block walk along a row, so that their reads and writes lie beside each other.

constexpr int RESIZE_THREADS = 256;
constexpr int RESIZE_BITS = 22;  // of a weight, after the point

// A pass over one image. Weights: per result pixel along the pass's axis its first input pixel, how many, and their
// weights, padded to `taps`.
struct ResizePass {
  const unsigned char* source;  // [any,source_width,3]
  unsigned char* target;        // [height,width,3]
  const int* weights;           // [width or height,2+taps]
  int source_width, height, width, taps, along_rows, unused;
};

__device__ __forceinline__ unsigned char to_byte(int sum) {
  sum >>= RESIZE_BITS;
  return (unsigned char)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

// Grid (any, B): the blocks of an image share its pixels.
extern "C" __global__ void __launch_bounds__(RESIZE_THREADS) resize_pass(const ResizePass* passes) {
  const ResizePass pass = passes[blockIdx.y];
  const long long count = (long long)pass.height * pass.width, stride = (long long)gridDim.x * blockDim.x;
  const long long row_bytes = 3ll * pass.source_width, step = pass.along_rows ? 3 : row_bytes;
  for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += stride) {
    const long long y = i / pass.width, x = i % pass.width;
    const int* weights = pass.weights + (pass.along_rows ? x : y) * (2 + pass.taps);
    const unsigned char* pixel = pass.source + (pass.along_rows ? y * row_bytes : x * 3) + weights[0] * step;
    int red = 1 << (RESIZE_BITS - 1), green = red, blue = red;
    for (int k = 0; k < weights[1]; k++, pixel += step) {
      const int weight = weights[2 + k];
      red += weight * pixel[0];
      green += weight * pixel[1];
      blue += weight * pixel[2];
    }
    pass.target[i * 3] = to_byte(red);
    pass.target[i * 3 + 1] = to_byte(green);
    pass.target[i * 3 + 2] = to_byte(blue);
  }
}

// One launch of one kernel on the emulator: arrays from standard input, results to standard output.
//
//   emulate ENTRY gx gy gz block shared_bytes B L C K E N M eps
//
// N and M: for the tiled kernels their tiling (`Launch`); N for backward_vq the slices.
//
// Every array is a heap allocation of exactly its size, so the address sanitizer sees any step outside of it, and
// results start as NaN, so an element that is never written shows.
#include "emulator.h"

#include SDPL_SOURCE

#include <map>
#include <string>

#if SDPL_DTYPE == 32
using T = float;
#define NAMED(what, suffix) what##_f32##suffix
#elif SDPL_DTYPE == 16
using T = half_bits;
#define NAMED(what, suffix) what##_f16##suffix
#else
using T = bfloat_bits;
#define NAMED(what, suffix) what##_bf16##suffix
#endif
#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)

template <typename V>
std::vector<V> read_array(size_t count) {
  std::vector<V> values(count);
  if (std::fread(values.data(), sizeof(V), count, stdin) != count) std::exit(4);
  return values;
}

static void write_array(const std::vector<float>& values) { std::fwrite(values.data(), 4, values.size(), stdout); }

int main(int, char** argv) {
  const std::string entry = argv[1];
  auto number = [&](int i) { return std::atoi(argv[i]); };
  const emulator::Index grid{number(2), number(3), number(4)};
  const int block = number(5), shared = number(6);
  const int B = number(7), L = number(8), C = number(9), K = number(10), E = number(11), slices = number(12), each = slices, most = number(13);
  const float eps = std::atof(argv[14]);
  auto results = [](size_t count) { return std::vector<float>(count, std::nanf("")); };

  const auto u = read_array<T>((size_t)B * L * K), v = read_array<T>((size_t)C * K);
  const auto q = read_array<float>(K);

  using Forward = void (*)(const T*, const T*, const float*, const T*, const float*, float*, float*, int, int, int, int, int, int, int, float);
  using Scores = void (*)(const T*, const T*, const float*, float*, int, int, int, int, int, int);
  std::map<std::string, Forward> forward;
  std::map<std::string, Scores> scores;
#define TILED(suffix)                                                        \
  forward[TEXT(NAMED(forward, suffix))] = NAMED(forward, suffix);            \
  scores[TEXT(NAMED(scores, suffix))] = NAMED(scores, suffix);
  TILED(_aligned)
  TILED(_any)

  if (forward.count(entry)) {
    const auto g = read_array<T>((size_t)B * L * E);
    const auto t = read_array<float>((size_t)C * E);
    auto logits = results((size_t)B * C), attention = results((size_t)B * C * L);
    emulator::launch(grid, block, shared, [&] {
      forward[entry](u.data(), v.data(), q.data(), g.data(), t.data(), logits.data(), attention.data(), B, L, C, K, E, each, most, eps);
    });
    write_array(logits);
    write_array(attention);
  } else if (scores.count(entry)) {
    auto s = results((size_t)B * C * L);
    emulator::launch(grid, block, shared, [&] { scores[entry](u.data(), v.data(), q.data(), s.data(), B, L, C, K, each, most); });
    write_array(s);
  } else {
    const auto ds = read_array<float>((size_t)B * C * L);
    const bool aligned = entry.ends_with("_aligned");
    if (entry.starts_with("backward_u")) {
      auto du = results((size_t)B * L * K);
      emulator::launch(grid, block, shared, [&] {
        (aligned ? NAMED(backward_u, _aligned) : NAMED(backward_u, _any))(u.data(), v.data(), q.data(), ds.data(), du.data(), L, C, K);
      });
      write_array(du);
    } else if (entry.starts_with("backward_vq")) {
      auto dv = results((size_t)slices * C * K), dq = results((size_t)slices * grid.y * K);
      const int per_slice = (B + slices - 1) / slices;
      emulator::launch(grid, block, shared, [&] {
        (aligned ? NAMED(backward_vq, _aligned) : NAMED(backward_vq, _any))(u.data(), v.data(), q.data(), ds.data(), dv.data(), dq.data(), B, L, C, K, per_slice);
      });
      write_array(dv);
      write_array(dq);
    } else {
      std::fprintf(stderr, "no kernel %s\n", entry.c_str());
      return 5;
    }
  }
}

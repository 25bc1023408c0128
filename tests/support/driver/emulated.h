// What the driver of host memory asks of a library of emulated kernels.
#pragma once
#include <cstddef>
#include <vector>

struct Parameter {
  size_t size;
  bool pointer;
};
struct Dimensions {
  int x, y, z;
};
using Describe = bool(const char* name, std::vector<Parameter>* parameters);  // false: no kernel of that name
using Run = void(const char* name, Dimensions grid, Dimensions block, size_t shared_bytes, void** arguments);

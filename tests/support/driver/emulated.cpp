// Kernels of one CUDA source on the emulator, as a library: launched by name, with the driver's array of arguments.
//
//   g++ -shared -fPIC -DSDPL_SOURCE="\"kernels.cu\"" -DSDPL_KERNELS="KERNEL(a) KERNEL(b)" emulated.cpp
#include "../emulator.h"

#include SDPL_SOURCE

#include <map>
#include <string>
#include <type_traits>
#include <utility>

#include "emulated.h"

struct Kernel {
  std::function<void(void**)> run;
  std::vector<Parameter> parameters;
};

template <typename... Arguments>
Kernel kernel(void (*function)(Arguments...)) {
  auto run = [function](void** values) {
    [&]<size_t... I>(std::index_sequence<I...>) {
      function(*static_cast<Arguments*>(values[I])...);
    }(std::index_sequence_for<Arguments...>{});
  };
  return {run, {Parameter{sizeof(Arguments), std::is_pointer_v<Arguments>}...}};
}

#define KERNEL(name) {#name, kernel(name)},
static const std::map<std::string, Kernel> kernels{SDPL_KERNELS};

extern "C" __attribute__((visibility("default"))) bool emulated_describe(const char* name, std::vector<Parameter>* parameters) {
  const auto found = kernels.find(name);
  if (found != kernels.end()) *parameters = found->second.parameters;
  return found != kernels.end();
}

extern "C" __attribute__((visibility("default"))) void emulated_run(const char* name, Dimensions grid, Dimensions block, size_t shared_bytes, void** arguments) {
  const Kernel& found = kernels.at(name);
  emulator::launch({grid.x, grid.y, grid.z}, block.x, shared_bytes, [&] { found.run(arguments); });
}

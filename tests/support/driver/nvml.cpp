// libnvidia-ml.so.1 for the GPUs of driver.cpp: clocks only. A GPU is found by its place on the bus; its number here is not
// CUDA's, as it may be on a real machine.
#include <cstdlib>

extern "C" __attribute__((visibility("default"))) int nvmlInit_v2() { return 0; }
extern "C" __attribute__((visibility("default"))) int nvmlDeviceGetHandleByPciBusId_v2(const char* id, void** handle) {
  *handle = (void*)strtol(id + 5, nullptr, 16);
  return 0;
}
extern "C" __attribute__((visibility("default"))) int nvmlDeviceGetClockInfo(void* handle, int kind, unsigned* mhz) {
  *mhz = kind == 1 ? 1000 + (unsigned)(size_t)handle : 0;  // 1: of the multiprocessors
  return 0;
}

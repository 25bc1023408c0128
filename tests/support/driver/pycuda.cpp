// The driver of host memory with the exported names that PyCUDA links to as well; cuda-python asks for functions by name.
#include "driver.cpp"

extern "C" {
#pragma GCC visibility push(default)
CUresult cuDeviceGet(CUdevice* device, int index) { return host_cuDeviceGet(device, index); }
CUresult cuDeviceGetCount(int* count) { return host_cuDeviceGetCount(count); }
CUresult cuDeviceGetName(char* name, int size, CUdevice device) { return host_cuDeviceGetName(name, size, device); }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
  switch (attribute) {  // what PyCUDA's arrays plan their own kernels with, which are not used here
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = 1024; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; return CUDA_SUCCESS;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *value = 48 << 10; return CUDA_SUCCESS;
    default: return host_cuDeviceGetAttribute(value, attribute, device);
  }
}
CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  host_cuDeviceGetAttribute(major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device);
  return host_cuDeviceGetAttribute(minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) { return host_cuDevicePrimaryCtxRetain(context, device); }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

static thread_local std::vector<Context*> below;  // the contexts under the current one
CUresult cuCtxPushCurrent_v2(CUcontext context) {
  below.push_back(current);
  current = (Context*)context;
  return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (below.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  if (context) *context = (CUcontext)current;
  current = below.back();
  below.pop_back();
  return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice* device) { return host_cuCtxGetDevice(device); }
CUresult cuCtxGetApiVersion(CUcontext, unsigned* version) { *version = 3020; return CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return host_cuCtxSynchronize(); }
CUresult cuCtxDetach(CUcontext) { return CUDA_SUCCESS; }

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t size) { return host_cuMemAlloc(address, size); }
CUresult cuMemFree_v2(CUdeviceptr address) { return host_cuMemFree(address); }
CUresult cuMemGetInfo_v2(size_t* free, size_t* total) { return host_cuMemGetInfo(free, total); }
static CUresult copy_now(void* target, const void* source, size_t size, CUdeviceptr on_device) {
  NEEDS_CONTEXT; LOCKED; ALLOWED;
  if (CUresult failed = drain(stream_of(nullptr))) return failed;
  if (!usable(on_device, size, current->device)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(target, source, size);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr target, const void* source, size_t size) {
  return copy_now((void*)target, source, size, target);
}
CUresult cuMemcpyDtoH_v2(void* target, CUdeviceptr source, size_t size) {
  return copy_now(target, (const void*)source, size, source);
}

CUresult cuStreamCreate(CUstream* stream, unsigned) { return host_cuStreamCreate(stream, CU_STREAM_NON_BLOCKING); }
CUresult cuStreamDestroy_v2(CUstream stream) { return host_cuStreamDestroy(stream); }
CUresult cuStreamSynchronize(CUstream stream) { return host_cuStreamSynchronize(stream); }
CUresult cuModuleLoadData(CUmodule* module, const void* image) { return host_cuModuleLoadData(module, image); }
CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned count, CUjit_option* options, void** values) {
  for (unsigned i = 0; i < count; i++) {  // nothing is logged: empty texts
    if (options[i] == CU_JIT_INFO_LOG_BUFFER || options[i] == CU_JIT_ERROR_LOG_BUFFER) *(char*)values[i] = 0;
    if (options[i] == CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES || options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) values[i] = 0;
  }
  return host_cuModuleLoadData(module, image);
}
CUresult cuModuleUnload(CUmodule module) { return host_cuModuleUnload(module); }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
  return host_cuModuleGetFunction(function, module, name);
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute, CUfunction) { *value = 0; return CUDA_SUCCESS; }
CUresult cuFuncSetBlockShape(CUfunction, int, int, int) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult status, const char** text) { return host_cuGetErrorString(status, text); }

// PyCUDA packs its arguments into one buffer, each at its own alignment.
CUresult cuLaunchKernel(CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared_bytes, CUstream stream, void** values, void** extra) {
  std::vector<void*> found;
  if (!values && extra) {
    char* buffer = nullptr;
    size_t size = 0, at = 0;
    for (void** each = extra; *each != CU_LAUNCH_PARAM_END; each += 2) {
      if (*each == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = (char*)each[1];
      if (*each == CU_LAUNCH_PARAM_BUFFER_SIZE) size = *(size_t*)each[1];
    }
    for (const Parameter& parameter : ((Function*)handle)->parameters) {
      at = (at + parameter.size - 1) / parameter.size * parameter.size;
      found.push_back(buffer + at);
      at += parameter.size;
    }
    if (at != size) return CUDA_ERROR_INVALID_VALUE;
    values = found.data();
  }
  return host_cuLaunchKernel(handle, gx, gy, gz, bx, by, bz, shared_bytes, stream, values, nullptr);
}
#pragma GCC visibility pop
}

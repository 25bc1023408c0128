// libcuda.so.1 for a machine without a GPU: device memory is the host's, kernels run on the emulator.
//
// Only what this project calls is here, but as strict as a real driver: the current context is per thread, nothing runs
// before somebody waits for it, streams then run in a random order beside each other, a capture forbids what CUDA
// forbids, addresses must be memory of that GPU, and an error on a stream stays. Fresh memory is 0xFF (NaN), freed memory
// 0xDD. Tests read counters and set limits through host_driver_get and host_driver_set.
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "emulated.h"

static std::recursive_mutex mutex;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(mutex)

static std::map<std::string, long> numbers{  // settings, and counts of calls
    {"gpus", 2}, {"capability", 86}, {"multiprocessors", 4}, {"memory", 1l << 30}, {"version", 13000}};

// ---- contexts ---------------------------------------------------------------------------------------------------------
struct Stream;
struct Context {
  int device = 0;
  size_t used = 0;
  Stream* standard = nullptr;
};
static Context contexts[8];
static thread_local Context* current = nullptr;
#define NEEDS_CONTEXT \
  if (!current) return CUDA_ERROR_INVALID_CONTEXT

// ---- memory -----------------------------------------------------------------------------------------------------------
struct Block {
  size_t size;
  int device;  // -1: pinned host memory
  Context* context;
};
static std::map<uintptr_t, Block> blocks;

static const Block* block_of(uintptr_t address, size_t size) {
  auto after = blocks.upper_bound(address);
  if (after == blocks.begin()) return nullptr;
  const auto& [start, block] = *std::prev(after);
  return address + size <= start + block.size ? &block : nullptr;
}

static bool usable(uintptr_t address, size_t size, int device, const Context* context = nullptr) {
  if (numbers["trusting"]) return true;
  const Block* block = block_of(address, size);
  if (!block || block->device == -1) return block;
  return block->device == device && (!context || block->context == context);  // copies may cross contexts, kernels not
}

static CUresult take(uintptr_t* address, size_t size, int device) {
  if (size == 0) return CUDA_ERROR_INVALID_VALUE;
  if (device >= 0 && contexts[device].used + size > (size_t)numbers["memory"]) return CUDA_ERROR_OUT_OF_MEMORY;
  void* memory = nullptr;
  if (posix_memalign(&memory, 512, size)) return CUDA_ERROR_OUT_OF_MEMORY;
  std::memset(memory, 0xFF, size);
  *address = (uintptr_t)memory;
  blocks[*address] = {size, device, current};
  if (device >= 0) contexts[device].used += size;
  return CUDA_SUCCESS;
}

static CUresult give(uintptr_t address, bool pinned) {
  const auto found = blocks.find(address);
  if (found == blocks.end() || (found->second.device == -1) != pinned) return CUDA_ERROR_INVALID_VALUE;
  if (!pinned) contexts[found->second.device].used -= found->second.size;
  std::memset((void*)address, 0xDD, found->second.size);
  free((void*)address);
  blocks.erase(found);
  return CUDA_SUCCESS;
}

// ---- streams and graphs -------------------------------------------------------------------------------------------------
using Work = std::function<CUresult()>;
struct Graph {
  std::vector<Work> work;
};
struct Stream {
  Context* context;
  std::deque<Work> queue;
  bool capturing = false, broken = false;
  pthread_t owner{};
  CUstreamCaptureMode mode{};
  Graph captured;
};
static std::set<Stream*> streams;
static std::set<Graph*> graphs;
static std::set<void*> modules;
static CUresult failure = CUDA_SUCCESS;  // of something that ran on a stream: every later call ends in it

static Stream* stream_of(CUstream handle) {
  if (handle == nullptr || handle == CU_STREAM_LEGACY || handle == CU_STREAM_PER_THREAD) {
    if (!current) return nullptr;
    if (!current->standard) current->standard = new Stream{current};
    return current->standard;
  }
  return streams.count((Stream*)handle) ? (Stream*)handle : nullptr;
}

static unsigned random_state = 1;
static unsigned random_number() {
  unsigned& state = random_state;
  return state = state * 1664525u + 1013904223u, state >> 16;
}

static void run_first(Stream* stream) {
  Work work = std::move(stream->queue.front());
  stream->queue.pop_front();
  if (failure == CUDA_SUCCESS) failure = work();
}

// Runs a stream to its end, and before each of its steps a random number of steps of the others.
static CUresult drain(Stream* stream) {
  while (!stream->queue.empty()) {
    for (Stream* other : std::vector<Stream*>(streams.begin(), streams.end()))
      while (other != stream && !other->queue.empty() && random_number() % 2) run_first(other);
    if (!stream->queue.empty()) run_first(stream);
  }
  return failure;
}

static CUresult drain_all() {
  for (Context& context : contexts)
    if (context.standard) drain(context.standard);
  for (Stream* stream : std::vector<Stream*>(streams.begin(), streams.end())) drain(stream);
  return failure;
}

// What may wait or allocate is refused while a capture is under way that forbids it, and breaks that capture.
static CUresult allowed() {
  for (Stream* stream : streams) {
    const bool ours = pthread_equal(stream->owner, pthread_self());
    if (!stream->capturing || stream->mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
    if (stream->mode == CU_STREAM_CAPTURE_MODE_GLOBAL || ours) {
      stream->broken = true;
      return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
  }
  return failure;
}
#define ALLOWED \
  if (CUresult refused = allowed()) return refused

static CUresult enqueue(CUstream handle, Work work) {
  Stream* stream = stream_of(handle);
  if (!stream) return handle ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_CONTEXT;
  if (failure) return failure;
  if (!stream->capturing) {
    stream->queue.push_back(std::move(work));
    return CUDA_SUCCESS;
  }
  if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  stream->captured.work.push_back(std::move(work));
  return CUDA_SUCCESS;
}

static std::map<std::string, void*> functions;
struct Registered {
  Registered(const char* name, void* function) { functions[name] = function; }
};
#define API(name, ...)                                             \
  static CUresult host_##name(__VA_ARGS__);                        \
  static Registered registered_##name(#name, (void*)host_##name);  \
  static CUresult host_##name(__VA_ARGS__)
#define COUNTED LOCKED; numbers[__func__ + 5]++; if (CUresult refused = refused_now(__func__ + 5)) return refused

// What may run out of memory does so in its "fail_after"-th call, once; "may_fail" counts those calls.
static CUresult refused_now(const std::string& function) {
  static const std::set<std::string> may{
      "cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuMemcpyAsync", "cuModuleLoadData", "cuModuleGetFunction",
      "cuLaunchKernel", "cuLaunchHostFunc", "cuStreamBeginCapture", "cuGraphInstantiate", "cuGraphLaunch"};
  if (!may.count(function)) return CUDA_SUCCESS;
  numbers["may_fail"]++;
  return numbers["fail_after"] > 0 && --numbers["fail_after"] == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

API(cuInit, unsigned) { LOCKED; return (CUresult)numbers["init_status"]; }
API(cuDriverGetVersion, int* version) { LOCKED; *version = numbers["version"]; return CUDA_SUCCESS; }
API(cuDeviceGetCount, int* count) { LOCKED; *count = numbers["gpus"]; return CUDA_SUCCESS; }
API(cuDeviceGet, CUdevice* device, int index) {
  LOCKED;
  if (index < 0 || index >= numbers["gpus"]) return CUDA_ERROR_INVALID_DEVICE;
  contexts[index].device = *device = index;
  return CUDA_SUCCESS;
}
API(cuDeviceGetName, char* name, int size, CUdevice device) {
  snprintf(name, size, numbers["alike"] ? "Host memory" : "Host memory %d", device);
  return CUDA_SUCCESS;
}
API(cuDeviceTotalMem, size_t* bytes, CUdevice) { LOCKED; *bytes = numbers["memory"]; return CUDA_SUCCESS; }
API(cuDeviceGetAttribute, int* value, CUdevice_attribute attribute, CUdevice) {
  LOCKED;
  switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = numbers["capability"] / 10; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = numbers["capability"] % 10; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = numbers["multiprocessors"]; break;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
  return CUDA_SUCCESS;
}
API(cuDeviceGetPCIBusId, char* id, int size, CUdevice device) {
  snprintf(id, size, "0000:%02X:00.0", 16 * (device + 1));
  return CUDA_SUCCESS;
}
API(cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice device) {
  LOCKED;
  if (numbers["context_status"]) return (CUresult)numbers["context_status"];
  *context = (CUcontext)&contexts[device];
  return CUDA_SUCCESS;
}
API(cuCtxCreate, CUcontext* context, CUctxCreateParams*, unsigned, CUdevice device) {  // beside the primary one
  current = new Context{device};
  *context = (CUcontext)current;
  return CUDA_SUCCESS;
}
API(cuCtxSetCurrent, CUcontext context) { current = (Context*)context; return CUDA_SUCCESS; }
API(cuCtxGetCurrent, CUcontext* context) { *context = (CUcontext)current; return CUDA_SUCCESS; }
API(cuCtxGetDevice, CUdevice* device) { NEEDS_CONTEXT; *device = current->device; return CUDA_SUCCESS; }
API(cuCtxSynchronize) {  // whatever the mode of a capture: the context is the wider handle of its stream
  NEEDS_CONTEXT; COUNTED;
  bool refused = false;
  for (Stream* stream : streams)
    if (stream->capturing && stream->context == current) refused = stream->broken = true;
  return refused ? CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED : failure ? failure : drain_all();
}

API(cuMemAlloc, CUdeviceptr* address, size_t size) {
  NEEDS_CONTEXT; COUNTED; ALLOWED;
  return take((uintptr_t*)address, size, current->device);
}
API(cuMemFree, CUdeviceptr address) { NEEDS_CONTEXT; COUNTED; ALLOWED; drain_all(); return give(address, false); }
API(cuMemHostAlloc, void** address, size_t size, unsigned) {
  NEEDS_CONTEXT; COUNTED; ALLOWED;
  return take((uintptr_t*)address, size, -1);
}
API(cuMemFreeHost, void* address) { NEEDS_CONTEXT; COUNTED; ALLOWED; drain_all(); return give((uintptr_t)address, true); }
API(cuMemGetInfo, size_t* free, size_t* total) {
  NEEDS_CONTEXT; LOCKED;
  *total = numbers["memory"];
  *free = *total - std::min(*total, current->used);
  return CUDA_SUCCESS;
}
API(cuPointerGetAttribute, void* data, CUpointer_attribute attribute, CUdeviceptr address) {
  NEEDS_CONTEXT; LOCKED;
  const Block* block = block_of(address, 1);
  if (!block || block->device == -1) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int*)data = block->device; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(Context**)data = block->context; return CUDA_SUCCESS;
    default: return CUDA_ERROR_INVALID_VALUE;
  }
}
API(cuMemcpyAsync, CUdeviceptr target, CUdeviceptr source, size_t size, CUstream handle) {
  COUNTED;
  Stream* stream = stream_of(handle);
  const int device = stream ? stream->context->device : 0;
  return enqueue(handle, [=] {
    if (!usable(target, size, device) || !usable(source, size, device)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    std::memcpy((void*)target, (void*)source, size);
    return CUDA_SUCCESS;
  });
}

API(cuStreamCreate, CUstream* stream, unsigned flags) {
  NEEDS_CONTEXT; COUNTED;
  if (flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_NOT_SUPPORTED;  // this project makes no other
  *stream = (CUstream)*streams.insert(new Stream{current}).first;
  return CUDA_SUCCESS;
}
API(cuStreamDestroy, CUstream handle) {
  COUNTED;
  Stream* stream = (Stream*)handle;
  if (!streams.count(stream)) return CUDA_ERROR_INVALID_HANDLE;
  drain(stream);
  streams.erase(stream);
  delete stream;
  return CUDA_SUCCESS;
}
API(cuStreamSynchronize, CUstream handle) {
  COUNTED;
  Stream* stream = stream_of(handle);
  if (!stream) return handle ? CUDA_ERROR_INVALID_HANDLE : CUDA_ERROR_INVALID_CONTEXT;
  ALLOWED;
  return drain(stream);
}
API(cuStreamBeginCapture, CUstream handle, CUstreamCaptureMode mode) {
  COUNTED;
  Stream* stream = (Stream*)handle;
  if (!streams.count(stream)) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;  // the default stream cannot be captured
  if (stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  stream->capturing = true;
  stream->broken = false;
  stream->owner = pthread_self();
  stream->mode = mode;
  stream->captured = {};
  return CUDA_SUCCESS;
}
API(cuStreamEndCapture, CUstream handle, CUgraph* graph) {
  COUNTED;
  Stream* stream = (Stream*)handle;
  *graph = nullptr;
  if (!streams.count(stream) || !stream->capturing) return CUDA_ERROR_ILLEGAL_STATE;
  if (!pthread_equal(stream->owner, pthread_self())) return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
  stream->capturing = false;
  if (stream->broken) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  *graph = (CUgraph)*graphs.insert(new Graph(std::move(stream->captured))).first;
  return CUDA_SUCCESS;
}
static CUresult destroy(Graph* graph) {
  if (!graphs.erase(graph)) return CUDA_ERROR_INVALID_HANDLE;
  delete graph;
  return CUDA_SUCCESS;
}
API(cuGraphInstantiate, CUgraphExec* made, CUgraph graph, unsigned long long) {
  COUNTED;
  if (!graphs.count((Graph*)graph)) return CUDA_ERROR_INVALID_HANDLE;
  *made = (CUgraphExec)*graphs.insert(new Graph(*(Graph*)graph)).first;
  return CUDA_SUCCESS;
}
static Registered instantiate("cuGraphInstantiateWithFlags", (void*)host_cuGraphInstantiate);  // as CUDA 12 names it
API(cuGraphDestroy, CUgraph graph) { COUNTED; return destroy((Graph*)graph); }
API(cuGraphExecDestroy, CUgraphExec graph) { COUNTED; drain_all(); return destroy((Graph*)graph); }
API(cuGraphLaunch, CUgraphExec handle, CUstream stream) {
  COUNTED;
  Graph* graph = (Graph*)handle;
  if (!graphs.count(graph)) return CUDA_ERROR_INVALID_HANDLE;
  return enqueue(stream, [graph] {
    for (const Work& work : graph->work)
      if (CUresult failed = work()) return failed;
    return CUDA_SUCCESS;
  });
}
API(cuLaunchHostFunc, CUstream stream, CUhostFn function, void* data) {
  COUNTED;
  return enqueue(stream, [=] { function(data); return CUDA_SUCCESS; });
}

// ---- kernels ------------------------------------------------------------------------------------------------------------
struct Module {
  Context* context;
};
struct Function {
  std::string name;
  Module* module;
  Run* run;
  std::vector<Parameter> parameters;
};

// The emulated kernel of a name, in the libraries that HOST_DRIVER_KERNELS lists, with colons between.
static Function* function_of(const char* name, Module* module) {
  const char* paths = getenv("HOST_DRIVER_KERNELS");
  std::istringstream list(paths ? paths : "");
  for (std::string path; std::getline(list, path, ':');) {
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      fprintf(stderr, "%s\n", dlerror());
      continue;
    }
    Function made{name, module, (Run*)dlsym(library, "emulated_run"), {}};
    if (((Describe*)dlsym(library, "emulated_describe"))(name, &made.parameters)) return new Function(made);
  }
  return nullptr;
}

API(cuModuleLoadData, CUmodule* module, const void* image) {
  NEEDS_CONTEXT; COUNTED; ALLOWED;
  const unsigned char* bytes = (const unsigned char*)image;
  if (std::memcmp(bytes, "\x7f" "ELF", 4)) return CUDA_ERROR_INVALID_IMAGE;
  if (numbers["version"] < 13000) return CUDA_ERROR_INVALID_IMAGE;  // older than the compiler of the cubin
  const int built = bytes[49], here = numbers["capability"];  // the second byte of the ELF flags, as NVRTC 13 writes it
  if (built / 10 != here / 10 || built > here) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  *module = (CUmodule)*modules.insert(new Module{current}).first;
  return CUDA_SUCCESS;
}
API(cuModuleUnload, CUmodule module) {
  NEEDS_CONTEXT; COUNTED; ALLOWED;
  drain_all();
  if (!modules.erase(module)) return CUDA_ERROR_INVALID_HANDLE;
  delete (Module*)module;
  return CUDA_SUCCESS;
}
API(cuModuleGetFunction, CUfunction* function, CUmodule module, const char* name) {
  NEEDS_CONTEXT; COUNTED;
  if (!modules.count(module)) return CUDA_ERROR_INVALID_HANDLE;
  *function = (CUfunction)function_of(name, (Module*)module);
  return *function ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
API(cuLaunchKernel, CUfunction handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
    unsigned shared_bytes, CUstream stream, void** values, void**) {
  NEEDS_CONTEXT; COUNTED;
  const Function* function = (Function*)handle;
  if (!modules.count(function->module)) return CUDA_ERROR_INVALID_HANDLE;
  if (function->module->context != current) return CUDA_ERROR_INVALID_CONTEXT;
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || shared_bytes > 48 << 10)
    return CUDA_ERROR_INVALID_VALUE;
  std::vector<std::vector<char>> kept;  // arguments are read now, the kernel runs later
  for (size_t i = 0; i < function->parameters.size(); i++) {
    const char* value = (const char*)values[i];
    kept.emplace_back(value, value + function->parameters[i].size);
  }
  const Context* context = current;
  return enqueue(stream, [=]() mutable {
    std::vector<void*> arguments;
    for (size_t i = 0; i < kept.size(); i++) {
      arguments.push_back(kept[i].data());
      uintptr_t address = 0;
      if (function->parameters[i].pointer) std::memcpy(&address, kept[i].data(), sizeof address);
      if (address && !usable(address, 1, context->device, context)) return CUDA_ERROR_ILLEGAL_ADDRESS;
    }
    function->run(function->name.c_str(), {(int)gx, (int)gy, (int)gz}, {(int)bx, (int)by, (int)bz}, shared_bytes,
                  arguments.data());
    return CUDA_SUCCESS;
  });
}
API(cuGetErrorString, CUresult status, const char** text) {
  static thread_local char buffer[40];
  snprintf(buffer, sizeof buffer, "error %d of the host driver", status);
  *text = buffer;
  return CUDA_SUCCESS;
}

// ---- how cuda-python and NVRTC find the above ---------------------------------------------------------------------------
#define EXPORTED extern "C" __attribute__((visibility("default")))
EXPORTED CUresult cuGetProcAddress_v2(const char* symbol, void** function, int, cuuint64_t,
                                      CUdriverProcAddressQueryResult* result) {
  const std::string name = symbol;
  const auto found = functions.find(name);
  *function = found == functions.end() ? nullptr : found->second;
  if (name.rfind("cuGetProcAddress", 0) == 0) *function = (void*)cuGetProcAddress_v2;
  if (result) *result = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return CUDA_SUCCESS;
}
EXPORTED CUresult cuInit(unsigned flags) { return host_cuInit(flags); }
EXPORTED CUresult cuDriverGetVersion(int* version) { return host_cuDriverGetVersion(version); }
EXPORTED CUresult cuGetExportTable(const void** table, const CUuuid*) {  // tables that are not documented: empty
  static const size_t empty[1] = {sizeof empty};
  *table = empty;
  return CUDA_SUCCESS;
}

// ---- for tests ------------------------------------------------------------------------------------------------------------
EXPORTED long host_driver_get(const char* name) {
  LOCKED;
  const std::string what = name;
  if (what == "streams") return streams.size();
  if (what == "graphs") return graphs.size();
  if (what == "modules") return modules.size();
  if (what == "used") return contexts[0].used + contexts[1].used;
  if (what == "pinned") return std::count_if(blocks.begin(), blocks.end(), [](auto& b) { return b.second.device == -1; });
  if (what == "waiting") {
    long count = 0;
    for (Stream* stream : streams) count += stream->queue.size();
    return count;
  }
  return numbers[what];
}
EXPORTED void host_driver_set(const char* name, long value) {
  LOCKED;
  numbers[name] = value;
  if (std::string(name) == "seed") random_state = value;
}

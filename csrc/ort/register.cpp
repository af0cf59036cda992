// The library's one public function: it adds the operators of the domain ai.vitlet to a session.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu.h"
#include "custom_op.h"

namespace vitlet::ort {
namespace {

constexpr const char* domain_name = "ai.vitlet";
constexpr const char* threads_key = "vitlet.threads";  // of the session's configuration entries
constexpr int max_threads = 256;

struct Operator : OrtCustomOp {
  const Definition* definition;
  int threads;
};

struct Node {
  const OrtApi* api;
  std::unique_ptr<Kernel> kernel;
};

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

template <typename Body>
Status guarded(const OrtApi* api, const char* what, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return CreateStatus::call(api, error_invalid_argument, error.what());
  } catch (const std::exception& error) {
    return CreateStatus::call(api, error_fail, error.what());
  } catch (...) {
    return CreateStatus::call(api, error_fail, what);
  }
}

Status create(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
  return guarded(api, "the kernel could not be made", [&] {
    auto made = self(op).definition->create(Info(api, info), self(op).threads);
    *kernel = new Node{api, std::move(made)};
  });
}

Status compute(void* kernel, OrtKernelContext* context) {
  const Node& node = *static_cast<const Node*>(kernel);
  return guarded(node.api, "the kernel failed",
                 [&] { node.kernel->compute(Context(node.api, context)); });
}

Operator make(const Definition& definition, int threads) {
  Operator op{};
  op.version = abi_version;
  op.GetName = [](const OrtCustomOp* op) { return self(op).definition->name; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // CPU
  op.GetInputType = [](const OrtCustomOp* op, std::size_t index) -> int {
    const char letter = self(op).definition->inputs[index];
    return letter == 'i' ? element_int8 : letter == 'u' ? element_uint8 : element_float;
  };
  op.GetInputTypeCount = [](const OrtCustomOp* op) {
    return std::strlen(self(op).definition->inputs);
  };
  op.GetOutputType = [](const OrtCustomOp*, std::size_t) -> int { return element_float; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> std::size_t { return 1; };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
  op.GetInputCharacteristic = [](const OrtCustomOp* op, std::size_t index) -> int {
    return self(op).definition->inputs[index] == 'F' ? input_optional : input_required;
  };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, std::size_t) -> int {
    return input_required;
  };
  op.GetInputMemoryType = [](const OrtCustomOp*, std::size_t) { return 0; };  // where the op runs
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicInputHomogeneity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputMinArity = op.GetVariadicInputMinArity;
  op.GetVariadicOutputHomogeneity = op.GetVariadicInputMinArity;
  op.CreateKernelV2 = create;
  op.KernelComputeV2 = compute;
  op.definition = &definition;
  op.threads = threads;
  return op;
}

// What sessions with one number of threads share. It outlives every session: nothing is freed.
struct Registration {
  std::vector<Operator> operators;
  OrtCustomOpDomain* domain = nullptr;
};

int threads_of(const OrtApi* api, const OrtSessionOptions* options) {
  char text[16] = {};
  std::size_t size = sizeof text;
  Status status = GetSessionConfigEntry::call(api, options, threads_key, text, &size);
  if (status != nullptr) {  // not set
    ReleaseStatus::call(api, status);
    return 1;
  }
  const long threads = std::strtol(text, nullptr, 10);
  return threads < 1 ? 1 : threads > max_threads ? max_threads : static_cast<int>(threads);
}

Status add(const OrtApi* api, Registration& entry, int threads) {
  Status status = CreateCustomOpDomain::call(api, domain_name, &entry.domain);
  for (const Definition* d = operators; d->name != nullptr; ++d)
    entry.operators.push_back(make(*d, threads));
  for (const Operator& op : entry.operators)
    if (status == nullptr)
      status = CustomOpDomainAdd::call(api, entry.domain, static_cast<const OrtCustomOp*>(&op));
  return status;
}

}  // namespace
}  // namespace vitlet::ort

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(
    OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace vitlet::ort;
  const OrtApi* api = base->GetApi(abi_version);
  if (api == nullptr) {  // an older runtime: its first functions are the same
    const OrtApi* oldest = base->GetApi(1);
    return oldest == nullptr
               ? nullptr
               : CreateStatus::call(oldest, error_fail, "vitlet needs ONNX Runtime 1.16 or newer");
  }
  Status status = nullptr;
  const Status failure = guarded(api, "registration failed", [&] {
    static std::mutex mutex;
    static auto& registrations = *new std::map<int, Registration>;
    vitlet::active_isa();  // a wrong VITLET_ISA is refused here
    const int threads = threads_of(api, options);
    const std::lock_guard<std::mutex> lock(mutex);
    Registration& entry = registrations[threads];
    if (entry.domain == nullptr) status = add(api, entry, threads);
    if (status == nullptr) status = AddCustomOpDomain::call(api, options, entry.domain);
  });
  return failure != nullptr ? failure : status;
}

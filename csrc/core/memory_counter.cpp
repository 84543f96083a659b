#include "core/memory_counter.h"

#include <c10/core/Allocator.h>

namespace torchtitan::core {
namespace {

// A meta allocation has no memory; its context carries the size to this deleter.
void forget(void* context);

class MetaAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, c10::Device(c10::kMeta)};
    counter.add(static_cast<int64_t>(size));
    return {nullptr, new size_t(size), &forget, c10::Device(c10::kMeta)};
  }
  // Null: a data pointer alone (always null here) does not say what to forget.
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* /*to*/, const void* /*from*/, size_t /*size*/) const override {}

  MemoryCounter counter;
};

MetaAllocator& meta_allocator() {
  // Never destroyed: tensors of other static objects may outlive any order.
  static auto* const allocator = [] {
    auto* created = new MetaAllocator;
    c10::SetAllocator(c10::kMeta, created, /*priority=*/100);
    return created;
  }();
  return *allocator;
}

void forget(void* context) {
  auto* const size = static_cast<size_t*>(context);
  meta_allocator().counter.remove(static_cast<int64_t>(*size));
  delete size;
}

}  // namespace

void MemoryCounter::add(int64_t bytes) {
  const int64_t live = live_ += bytes;
  int64_t peak = peak_;
  while (live > peak && !peak_.compare_exchange_weak(peak, live)) {
  }
}

MemoryCounter& meta_memory() { return meta_allocator().counter; }

}  // namespace torchtitan::core

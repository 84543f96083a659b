#include "core/cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/util/Exception.h>
#include <pthread.h>

#include <array>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <mutex>

namespace torchtitan::core {
namespace {

// In front of the bytes of a tensor; 64 bytes keep those aligned.
struct alignas(64) Header {
  size_t requested;
  size_t size_class;
  MemoryCounter* made_by;  // of a thread that counts its own; or null
  Header* next;            // while kept
};

thread_local MemoryCounter* own_counter = nullptr;

// Sizes are rounded up to eight steps for each power of two (at most 1/8 is lost), so
// that tensors of nearly equal sizes can take each other's place.
constexpr size_t kStepsPerDouble = 8;
constexpr size_t kSmallest = 64;
constexpr size_t kNumClasses = 64 * kStepsPerDouble;

size_t class_of(size_t size) {
  if (size <= kSmallest) return 0;
  const size_t exponent = std::bit_width(size - 1) - 1;  // 2^exponent < size
  const size_t step = (size_t{1} << exponent) / kStepsPerDouble;
  const size_t steps = (size - (size_t{1} << exponent) + step - 1) / step;
  return exponent * kStepsPerDouble + steps;
}

size_t bytes_of(size_t size_class) {
  if (size_class == 0) return kSmallest;
  // The last step of an exponent is the next power of two.
  const size_t exponent = (size_class - 1) / kStepsPerDouble;
  const size_t steps = size_class - exponent * kStepsPerDouble;
  const size_t power = size_t{1} << exponent;
  return power + power / kStepsPerDouble * steps;
}

void give_back(void* data);

class KeepingAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const c10::Device cpu(c10::kCPU);
    if (size == 0) return {nullptr, cpu};
    Header* header = take(size);
    header->requested = size;
    header->made_by = own_counter;
    counter.add(static_cast<int64_t>(size));
    if (own_counter != nullptr) own_counter->add(static_cast<int64_t>(size));
    void* const data = header + 1;
    return {data, data, &give_back, cpu};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t size) const override {
    std::memcpy(to, from, size);
  }

  void keep(Header* header) {
    const auto requested = static_cast<int64_t>(header->requested);
    counter.remove(requested);
    if (header->made_by != nullptr) header->made_by->remove(requested);
    const std::lock_guard lock(mutex_);
    header->next = kept_[header->size_class];
    kept_[header->size_class] = header;
  }

  void release_kept() {
    const std::lock_guard lock(mutex_);
    for (Header*& head : kept_) {
      while (head != nullptr) {
        Header* const next = head->next;
        std::free(head);
        head = next;
      }
    }
  }

  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

  MemoryCounter counter;

 private:
  Header* take(size_t size) {
    const size_t size_class = class_of(size);
    {
      const std::lock_guard lock(mutex_);
      if (Header* const head = kept_[size_class]) {
        kept_[size_class] = head->next;
        return head;
      }
    }
    Header* header = fresh(size_class);
    if (header == nullptr) {
      release_kept();
      header = fresh(size_class);
    }
    TORCH_CHECK_WITH(OutOfMemoryError, header != nullptr,
                     "out of memory: cannot allocate ", size,
                     " bytes for a CPU tensor");
    return header;
  }

  static Header* fresh(size_t size_class) {
    const size_t bytes = sizeof(Header) + (bytes_of(size_class) + 63) / 64 * 64;
    void* const memory = std::aligned_alloc(alignof(Header), bytes);
    if (memory == nullptr) return nullptr;
    auto* const header = static_cast<Header*>(memory);
    header->size_class = size_class;
    return header;
  }

  std::mutex mutex_;
  std::array<Header*, kNumClasses> kept_{};
};

KeepingAllocator& allocator() {
  // Never destroyed: tensors in static objects may be freed after any destructor here.
  static auto* const instance = [] {
    auto* const created = new KeepingAllocator;
    // A child of fork() must not inherit a mutex that a thread of the parent holds.
    pthread_atfork([] { allocator().lock(); }, [] { allocator().unlock(); },
                   [] { allocator().unlock(); });
    c10::SetCPUAllocator(created, /*priority=*/100);
    return created;
  }();
  return *instance;
}

void give_back(void* data) {
  if (data != nullptr) allocator().keep(static_cast<Header*>(data) - 1);
}

}  // namespace

MemoryCounter& cpu_memory() { return allocator().counter; }

MemoryCounter& thread_memory() {
  allocator();
  // Never destroyed: blocks point to it.
  if (own_counter == nullptr) own_counter = new MemoryCounter;
  return *own_counter;
}

void release_kept_cpu_memory() { allocator().release_kept(); }

}  // namespace torchtitan::core

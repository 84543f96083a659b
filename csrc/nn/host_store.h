// Host memory for what segments keep for their backward, while the device needs its own
// for something else.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <vector>

#include "core/memory_counter.h"

namespace torchtitan::nn {

// Tensors on their way to host memory, in it, or on their way back. The members are
// called once each, in this order. Waiting is done by the device's current stream, not
// by the caller.
class Away {
 public:
  virtual ~Away() = default;

  // The copies have ended: the places of the tensors are undefined, and what nothing
  // else refers to of their memory is free.
  virtual void wait_offload() = 0;
  virtual void start_reload() = 0;
  // Tensors with the values, shapes and strides of before are in their places, in
  // memory of their own; views of one storage are so again. Host memory is free.
  virtual void wait_reload() = 0;
};

// Places of what autograd saved.
using SavedPlaces = std::vector<std::shared_ptr<at::Tensor>>;
// Runs a forward and returns the places of all tensors that autograd saves meanwhile.
using Recorder = std::function<SavedPlaces(const std::function<void()>& forward)>;

class HostStore {
 public:
  virtual ~HostStore() = default;

  // Runs a forward and returns what autograd saves meanwhile, none where it does not
  // record: then that stays on the device.
  virtual SavedPlaces record(const std::function<void()>& forward) = 0;
  virtual bool records() const = 0;

  // False: host memory is the device's, so everything stays where it is.
  virtual bool moves() const = 0;

  // Starts to copy the tensors at these places, all of one device, where they are
  // defined. Each storage is copied once. The places must be valid and nobody may write
  // to the tensors until wait_reload(). What is away may outlive the store.
  virtual std::unique_ptr<Away> start_offload(
      const std::vector<at::Tensor*>& places) = 0;

  // Bytes in host memory.
  core::MemoryCounter& memory() { return *memory_; }

 protected:
  const std::shared_ptr<core::MemoryCounter> memory_ =
      std::make_shared<core::MemoryCounter>();
};

// For a CPU: all its calls do nothing.
std::shared_ptr<HostStore> host_is_device();

// Copies beside the computation: on a device with streams over one of its own, to
// pinned memory. Tensors on a CPU are copied at once, to memory that the allocator of
// tensors does not count; of meta tensors there is nothing to copy.
// `recorder` is Python's affair: only there autograd tells what it saves.
std::shared_ptr<HostStore> copies_on_host(Recorder recorder = nullptr);

// Drops the memory of a leaf that requires grad, of a graph whose saved tensors have
// been recorded; shape and gradient stay, and every value is NaN.
void drop_leaf_memory(const at::Tensor& leaf);

// Of the storages behind the tensors at these places, each once.
int64_t storage_bytes(const std::vector<at::Tensor*>& places);

}  // namespace torchtitan::nn

#include "collectives/ring.h"

namespace torchtitan::collectives {

Hop pass_on(const Group& group, const at::Tensor& sent, const at::Tensor& received) {
  const int64_t rank = group.rank(), size = group.size();
  const int64_t next = (rank + 1) % size, before = (rank + size - 1) % size;
  // Two ranks are each other's next and share one queue where the backend has a queue
  // for each pair: one of them must receive first.
  Hop hop;
  if (rank % 2 == 0) hop.sent = group.send(sent, next);
  hop.received = group.recv(received, before);
  if (rank % 2 == 1) hop.sent = group.send(sent, next);
  return hop;
}

}  // namespace torchtitan::collectives

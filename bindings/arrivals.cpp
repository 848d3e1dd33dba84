#include "arrivals.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <mutex>
#include <utility>

#include "stepladder/error.h"

namespace stepladder {

class Arrivals::List {
 public:
  List() : descriptor_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (descriptor_ < 0)
      throw Error(Code::io, "no file descriptor is left to wait for streams with; close some");
  }
  ~List() { ::close(descriptor_); }
  List(const List&) = delete;
  List& operator=(const List&) = delete;

  int descriptor() const { return descriptor_; }

  /// Room for a key that is put in later, by a thread that must not allocate.
  void expect_one() {
    const std::lock_guard lock(mutex_);
    keys_.reserve(keys_.size() + expected_ + 1);
    ++expected_;
  }
  void expect_one_less() {
    const std::lock_guard lock(mutex_);
    --expected_;
  }

  void add(uint64_t key) {
    const std::lock_guard lock(mutex_);
    keys_.push_back(key);
    if (keys_.size() == 1) ::eventfd_write(descriptor_, 1);
  }

  std::vector<uint64_t> take() {
    const std::lock_guard lock(mutex_);
    eventfd_t count;
    ::eventfd_read(descriptor_, &count);
    std::vector<uint64_t> out(keys_);
    keys_.clear();  // keeps its room
    return out;
  }

 private:
  const int descriptor_;
  std::mutex mutex_;
  std::vector<uint64_t> keys_;
  size_t expected_ = 0;
};

Arrivals::Arrivals() : list_(std::make_shared<List>()) {}

int Arrivals::descriptor() const { return list_->descriptor(); }

std::vector<uint64_t> Arrivals::take() { return list_->take(); }

std::function<void()> Arrivals::expect(uint64_t key) const {
  /// Holds the key's room until it has come or is expected no more.
  struct Expected {
    std::shared_ptr<List> list;
    explicit Expected(std::shared_ptr<List> l) : list(std::move(l)) { list->expect_one(); }
    ~Expected() { list->expect_one_less(); }
    Expected(const Expected&) = delete;
    Expected& operator=(const Expected&) = delete;
  };
  return [expected = std::make_shared<const Expected>(list_), key] { expected->list->add(key); };
}

}  // namespace stepladder

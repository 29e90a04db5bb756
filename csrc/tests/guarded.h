// Memory beside pages that cannot be touched, so that a step outside is found in whatever instruction set.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace dynpool::test {

// Memory that ends where a page that may not be touched begins, whatever word that is in; or begins after such a page.
class Guarded {
 public:
  Guarded(int64_t bytes, bool at_end) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    inside_ = (bytes + page - 1) / page * page;
    pages_ = static_cast<char*>(
        mmap(nullptr, inside_ + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (pages_ == MAP_FAILED) throw std::bad_alloc();
    whole_ = inside_ + 2 * page;
    if (inside_) mprotect(pages_ + page, inside_, PROT_READ | PROT_WRITE);
    data_ = pages_ + page + (at_end ? inside_ - bytes : 0);
    poison(true);
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    poison(false);
    munmap(pages_, whole_);
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  // What lies before the data in their first page.
  void poison([[maybe_unused]] bool on) const {
#if defined(__SANITIZE_ADDRESS__)
    char* first = pages_ + (whole_ - inside_) / 2;
    (on ? __asan_poison_memory_region : __asan_unpoison_memory_region)(first, data_ - first);
#endif
  }
  char *pages_, *data_;
  int64_t inside_, whole_;
};

}  // namespace dynpool::test

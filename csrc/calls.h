// Calls that have been made before, found and run without Python in between, which takes longer than a kernel's launch.
// Tensors are seen through the table of functions that torch exports with them, DLPackExchangeAPI of dlpack.h, version 1.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <utility>
#include <vector>

namespace dynpool {
namespace {

namespace py = pybind11;

struct DLTensor {
  void* data;
  int32_t device_type, device;
  int32_t ndim;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;

  uintptr_t address() const { return reinterpret_cast<uintptr_t>(data) + byte_offset; }
};

struct ExchangeTable {
  uint32_t major_version, minor_version;
  ExchangeTable* former;
  void* others[3];
  int (*view)(void* tensor, DLTensor* view);  // -1: a Python error is set
  void* another;
};

// Of (x, y, current): addresses, and the stream or the number of threads.
using Launch = std::function<void(uintptr_t x, uintptr_t y, uintptr_t current)>;

constexpr char kLaunchName[] = "dynpool launch";

inline PyObject* python_error(const std::exception& error, PyObject* type) {
  PyErr_SetString(type, error.what());
  return nullptr;
}
// What `use` returns; or null, and its exception a Python error.
template <class Use>
PyObject* guarded(Use use) {
  try {
    return use();
  } catch (py::error_already_set& error) {
    error.restore();
    return nullptr;
  } catch (const std::invalid_argument& error) {
    return python_error(error, PyExc_ValueError);
  } catch (const std::exception& error) {
    return python_error(error, PyExc_RuntimeError);
  }
}

inline uintptr_t number_of(PyObject* number) {
  const size_t value = PyLong_AsSize_t(number);
  if (PyErr_Occurred()) throw py::error_already_set();
  return value;
}

// A Python function with C++ data behind it. One of pybind11's takes four times as long to call.
inline py::object quick_function(PyMethodDef& method, const py::capsule& data) {
  PyObject* function = PyCFunction_New(&method, data.ptr());
  if (!function) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(function);
}

inline PyObject* run_launch(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count != 3) throw std::invalid_argument("x, y and current are needed");
    const auto* launch = static_cast<const Launch*>(PyCapsule_GetPointer(self, kLaunchName));
    (*launch)(number_of(arguments[0]), number_of(arguments[1]), number_of(arguments[2]));
    return py::none().release().ptr();
  });
}

inline PyCFunction fast_call(PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

inline py::object launch_function(Launch launch) {
  static PyMethodDef method{"launch", fast_call(run_launch), METH_FASTCALL, nullptr};
  const py::capsule data(new Launch(std::move(launch)), kLaunchName, [](PyObject* capsule) {
    delete static_cast<Launch*>(PyCapsule_GetPointer(capsule, kLaunchName));
  });
  return quick_function(method, data);
}

class Calls {
 public:
  // `ordinary`: types of tensors. `busy`: functions that say whether something else must see the call, as forward_ad's
  // level does if it is not negative. empty_like, capturing: torch's.
  Calls(const py::capsule& table, std::vector<py::object> ordinary, std::vector<py::object> busy, py::object forward_ad,
        py::object capturing, py::object empty_like)
      : ordinary_(std::move(ordinary)), busy_(std::move(busy)), forward_ad_(std::move(forward_ad)),
        capturing_(std::move(capturing)), empty_like_(std::move(empty_like)) {
    constexpr char kName[] = "dlpack_exchange_api";
    if (PyCapsule_IsValid(table.ptr(), kName))
      table_ = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(table.ptr(), kName));
    if (!table_ || table_->major_version != 1 || !table_->view) throw std::invalid_argument("no such exchange table");
  }

  // Calls with such a tensor and such options are run from now on by `launch`, into a tensor like like_y. launch_function
  // has made it, perhaps that of another module: its capsule's name tells. `current`: its last argument, as a function of
  // `index`. `differentiable` runs the call for tensors that require a gradient.
  void keep(const py::object& x, std::vector<py::object> options, py::object like_y, py::object launch, py::object current,
            py::object index, py::object differentiable) {
    DLTensor view;
    if (table_->view(x.ptr(), &view) != 0) throw py::error_already_set();
    if (!PyCFunction_Check(launch.ptr())) throw std::invalid_argument("no launch function");
    const auto* held = static_cast<const Launch*>(PyCapsule_GetPointer(PyCFunction_GetSelf(launch.ptr()), kLaunchName));
    if (!held) throw py::error_already_set();
    auto call = std::make_shared<const Call>(Call{layout_of(view), std::move(options), std::move(like_y), std::move(launch),
                                                  held, std::move(current), std::move(index), std::move(differentiable)});
    std::vector<PyObject*> given;
    for (const py::object& option : call->options) given.push_back(option.ptr());
    if (find(view, given.data(), static_cast<Py_ssize_t>(given.size()))) return;  // another thread was first
    decltype(known_) former;  // destroyed last: that runs Python, whose other threads must not see half a map
    if (size_ >= kMostKept) {
      former.swap(known_);
      size_ = 0;
    }
    known_[hash_of(view)].push_back(std::move(call));
    ++size_;
  }

  size_t size() const { return size_; }

  // y, or None for a call that is not known or not ordinary. Arguments: the tensor and its options. A new reference, or
  // null with a Python error set.
  PyObject* run(PyObject* const* arguments, Py_ssize_t count) const {
    PyObject* x = arguments[0];
    DLTensor view;
    if (!is_ordinary(x)) Py_RETURN_NONE;
    if (table_->view(x, &view) != 0) {  // it has no memory of this kind
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    const auto call = find(view, arguments + 1, count - 1);  // held, since other threads may clear what is kept
    if (!call || (view.device_type != kCpu && is_true(capturing_))) Py_RETURN_NONE;
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    static PyObject* const requires_grad = PyUnicode_InternFromString("requires_grad");
    if (is_true(PyObject_CallMethodNoArgs(x, is_neg))) Py_RETURN_NONE;  // its memory holds -x
    const auto needs = py::reinterpret_steal<py::object>(PyObject_GetAttr(x, requires_grad));
    if (!needs) throw py::error_already_set();
    if (needs.ptr() != Py_False) return PyObject_CallOneArg(call->differentiable.ptr(), x);

    auto y = py::reinterpret_steal<py::object>(PyObject_CallOneArg(empty_like_.ptr(), call->like_y.ptr()));
    if (!y) throw py::error_already_set();
    const auto current = py::reinterpret_steal<py::object>(PyObject_CallOneArg(call->current.ptr(), call->index.ptr()));
    DLTensor view_of_y;
    if (!current || table_->view(y.ptr(), &view_of_y) != 0) throw py::error_already_set();
    (*call->launch)(view.address(), view_of_y.address(), number_of(current.ptr()));
    return y.release().ptr();
  }

 private:
  static constexpr int32_t kCpu = 1;
  static constexpr size_t kMostKept = 256;

  struct Call {
    std::vector<int64_t> layout;
    std::vector<py::object> options;
    py::object like_y, holder;
    const Launch* launch;  // of the holder
    py::object current, index, differentiable;
  };

  template <class Use>
  static void for_each_number(const DLTensor& view, Use use) {
    use(static_cast<int64_t>(view.device_type) << 32 | view.device);
    use(static_cast<int64_t>(view.type_code) << 32 | view.type_bits);
    for (int32_t d = 0; d < view.ndim; ++d) use(view.shape[d]);
    for (int32_t d = 0; d < view.ndim; ++d) use(view.strides[d]);
  }
  static std::vector<int64_t> layout_of(const DLTensor& view) {
    std::vector<int64_t> layout;
    for_each_number(view, [&](int64_t number) { layout.push_back(number); });
    return layout;
  }
  static uint64_t hash_of(const DLTensor& view) {
    uint64_t hash = 0;
    for_each_number(view, [&](int64_t number) { hash = (hash ^ static_cast<uint64_t>(number)) * 0x9e3779b97f4a7c15u; });
    return hash;
  }
  static bool has_layout(const Call& call, const DLTensor& view) {
    if (call.layout.size() != static_cast<size_t>(2 + 2 * view.ndim)) return false;
    auto next = call.layout.begin();
    bool same = true;
    for_each_number(view, [&](int64_t number) { same = same && number == *next++; });
    return same;
  }
  // True is not 1. Nothing but numbers and strings is compared by more than identity: that would run Python.
  static bool has_options(const Call& call, PyObject* const* options) {
    for (const py::object& kept : call.options) {
      PyObject* given = *options++;
      if (given == kept.ptr()) continue;
      const bool comparable = (PyLong_CheckExact(given) && PyLong_CheckExact(kept.ptr())) ||
                              (PyUnicode_CheckExact(given) && PyUnicode_CheckExact(kept.ptr()));
      if (!comparable || PyObject_RichCompareBool(given, kept.ptr(), Py_EQ) != 1) return false;
    }
    return true;
  }
  std::shared_ptr<const Call> find(const DLTensor& view, PyObject* const* options, Py_ssize_t count) const {
    const auto found = known_.find(hash_of(view));
    if (found == known_.end()) return nullptr;
    for (const auto& call : found->second)
      if (call->options.size() == static_cast<size_t>(count) && has_layout(*call, view) && has_options(*call, options))
        return call;
    return nullptr;
  }

  static bool is_true(const py::object& function) { return is_true(PyObject_CallNoArgs(function.ptr())); }
  static bool is_true(PyObject* answer) {
    const auto said = py::reinterpret_steal<py::object>(answer);
    const int truth = said ? PyObject_IsTrue(said.ptr()) : -1;
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
  }
  bool is_ordinary(PyObject* x) const {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(x));
    const auto is_type = [&](const py::object& ordinary) { return ordinary.ptr() == type; };
    const auto says_yes = [](const py::object& function) { return is_true(function); };
    if (std::none_of(ordinary_.begin(), ordinary_.end(), is_type)) return false;
    if (std::any_of(busy_.begin(), busy_.end(), says_yes)) return false;
    static PyObject* const name = PyUnicode_InternFromString("_current_level");
    const auto level = py::reinterpret_steal<py::object>(PyObject_GetAttr(forward_ad_.ptr(), name));
    const long value = level ? PyLong_AsLong(level.ptr()) : 0;
    if (PyErr_Occurred()) throw py::error_already_set();
    return value < 0;
  }

  const ExchangeTable* table_ = nullptr;
  std::vector<py::object> ordinary_, busy_;
  py::object forward_ad_, capturing_, empty_like_;
  std::unordered_map<uint64_t, std::vector<std::shared_ptr<const Call>>> known_;
  size_t size_ = 0;
};

inline PyObject* run_calls(PyObject* self, PyObject* const* arguments, Py_ssize_t count) {
  return guarded([&] {
    if (count < 1) throw std::invalid_argument("a tensor is needed");
    return (*static_cast<const std::shared_ptr<Calls>*>(PyCapsule_GetPointer(self, nullptr)))->run(arguments, count);
  });
}

// Calls::run.
inline py::object run_function(const std::shared_ptr<Calls>& calls) {
  static PyMethodDef method{"run", fast_call(run_calls), METH_FASTCALL, nullptr};
  return quick_function(method, py::capsule(new std::shared_ptr<Calls>(calls), [](void* held) {
                          delete static_cast<std::shared_ptr<Calls>*>(held);
                        }));
}

}  // namespace
}  // namespace dynpool

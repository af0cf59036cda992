// Lets an extension that was linked against a new glibc load on any since 2.17 (manylinux_2_17).
// The linker sends every call of these functions here: see --wrap in CMakeLists.txt.
#include <pthread.h>
#include <signal.h>

extern "C" {

// The statically linked libstdc++ asks glibc >= 2.32 whether the process has one thread only, to
// skip atomics. "No" is always a right answer.
__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

// glibc 2.29 (exp) to 2.34 gave these a new version; the old one is there still.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_once_of_old,pthread_once@GLIBC_2.2.5");
__asm__(".symver pthread_create_of_old,pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_sigmask_of_old,pthread_sigmask@GLIBC_2.2.5");
__asm__(".symver exp_of_old,exp@GLIBC_2.2.5");
int pthread_once_of_old(pthread_once_t*, void (*)());
int pthread_create_of_old(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int pthread_sigmask_of_old(int, const sigset_t*, sigset_t*);
double exp_of_old(double);
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_once_of_old,pthread_once@GLIBC_2.17");
__asm__(".symver pthread_create_of_old,pthread_create@GLIBC_2.17");
__asm__(".symver pthread_sigmask_of_old,pthread_sigmask@GLIBC_2.17");
__asm__(".symver exp_of_old,exp@GLIBC_2.17");
int pthread_once_of_old(pthread_once_t*, void (*)());
int pthread_create_of_old(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int pthread_sigmask_of_old(int, const sigset_t*, sigset_t*);
double exp_of_old(double);
#else
int __real_pthread_once(pthread_once_t*, void (*)());
int __real_pthread_sigmask(int, const sigset_t*, sigset_t*);
int __real_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
double __real_exp(double);
#define exp_of_old __real_exp
#define pthread_once_of_old __real_pthread_once
#define pthread_create_of_old __real_pthread_create
#define pthread_sigmask_of_old __real_pthread_sigmask
#endif

__attribute__((visibility("hidden"))) int __wrap_pthread_once(pthread_once_t* once,
                                                              void (*function)()) {
  return pthread_once_of_old(once, function);
}

__attribute__((visibility("hidden"))) int __wrap_pthread_create(pthread_t* thread,
                                                                const pthread_attr_t* attributes,
                                                                void* (*start)(void*),
                                                                void* argument) {
  return pthread_create_of_old(thread, attributes, start, argument);
}

__attribute__((visibility("hidden"))) int __wrap_pthread_sigmask(int how, const sigset_t* set,
                                                                 sigset_t* before) {
  return pthread_sigmask_of_old(how, set, before);
}

__attribute__((visibility("hidden"))) double __wrap_exp(double x) { return exp_of_old(x); }
}

/* C11's timed wait, which librdkafka uses and libfaketime knows nothing of. As in the kernel, the wait ends when the wall
 * clock comes to its deadline: sooner when that jumps ahead, later when it is set back. */
#define _GNU_SOURCE
#include <pthread.h>
#include <threads.h>
#include <time.h>

enum { LOOK_EVERY_NANOS = 10 * 1000 * 1000, SECOND_NANOS = 1000 * 1000 * 1000 };

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *deadline) {
  for (;;) {
    struct timespec now, next;
    timespec_get(&now, TIME_UTC);
    if (now.tv_sec > deadline->tv_sec || (now.tv_sec == deadline->tv_sec && now.tv_nsec >= deadline->tv_nsec))
      return thrd_timedout;
    long left = LOOK_EVERY_NANOS;
    if (deadline->tv_sec - now.tv_sec <= 1) {
      long exactly = (deadline->tv_sec - now.tv_sec) * SECOND_NANOS + deadline->tv_nsec - now.tv_nsec;
      if (exactly < left) left = exactly;
    }
    clock_gettime(CLOCK_MONOTONIC, &next);
    next.tv_nsec += left;
    if (next.tv_nsec >= SECOND_NANOS) next.tv_sec++, next.tv_nsec -= SECOND_NANOS;
    if (pthread_cond_clockwait((pthread_cond_t *)condition, (pthread_mutex_t *)mutex, CLOCK_MONOTONIC, &next) == 0)
      return thrd_success;
  }
}

/* Preloaded: the time of day, and nothing else, is wrong by the number of seconds in the file JUMP. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static volatile int64_t *jump;
	int result = syscall(SYS_clock_gettime, clock, now);

	if (!jump) {
		int fd = syscall(SYS_openat, AT_FDCWD, JUMP, O_RDONLY | O_CLOEXEC);
		void *map = mmap(0, sizeof *jump, PROT_READ, MAP_SHARED, fd, 0);

		close(fd);
		if (map == MAP_FAILED)
			return result;
		jump = map;
	}
	if (!result && clock == CLOCK_REALTIME)
		now->tv_sec += *jump;
	return result;
}

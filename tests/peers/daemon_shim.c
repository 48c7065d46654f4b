/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Preloaded into an in-tree Hyper-V daemon: its kernel device /dev/vmbus/hv_* is a socket that the test
 * passes down as descriptor HVRING_TEST_DEVICE. All other files are the real ones.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef int (*open_function)(const char *path, int flags, ...);

static int open_or_divert(const char *name, const char *path, int flags, unsigned mode)
{
	static const char device[] = "/dev/vmbus/hv_";
	const char *descriptor = getenv("HVRING_TEST_DEVICE");

	if (descriptor && path && strncmp(path, device, sizeof(device) - 1) == 0)
		return dup(atoi(descriptor));
	return ((open_function)dlsym(RTLD_NEXT, name))(path, flags, mode);
}

#define DIVERT(name)                                                  \
	int name(const char *path, int flags, ...)                    \
	{                                                             \
		unsigned mode = 0;                                    \
		if (flags & (O_CREAT | __O_TMPFILE)) {                \
			va_list more;                                 \
			va_start(more, flags);                        \
			mode = va_arg(more, unsigned);                \
			va_end(more);                                 \
		}                                                     \
		return open_or_divert(#name, path, flags, mode);      \
	}

DIVERT(open)
DIVERT(open64)
DIVERT(__open_2)
DIVERT(__open64_2)

/* The file copy daemon reads and writes its device at offset 0, which a socket does not know. */
static int is_socket(int fd)
{
	int type;
	socklen_t size = sizeof(type);

	return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0;
}

#define AT_OFFSET(name, buffer, plain)                                                        \
	ssize_t name(int fd, buffer data, size_t size, off_t at)                              \
	{                                                                                     \
		if (at == 0 && is_socket(fd))                                                 \
			return plain(fd, data, size);                                         \
		return ((ssize_t (*)(int, buffer, size_t, off_t))dlsym(RTLD_NEXT, #name))(    \
			fd, data, size, at);                                                  \
	}

AT_OFFSET(pread, void *, read)
AT_OFFSET(pwrite, const void *, write)

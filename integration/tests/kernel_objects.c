/* The kernel objects that Python's standard library has no call for, in the manner of kernel_objects.py: each is made,
 * then `ready` is printed; when /tmpfs/go is there each is looked at, and `NAME ok` or `NAME failed: WHY` is printed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#define KEY 0x601d

/* What an object's second half says: NULL, or why it is not as it was. */
typedef const char *verdict;

static void must(int good, const char *what)
{
	if (!good) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static int soon_readable(int fd)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	return poll(&one, 1, 5000) == 1;
}

/* === watches === */

struct watch {
	const char *directory;
	int events;
};
static struct watch on_root = { "/watched" }, on_tmpfs = { "/tmpfs" }, on_volume = { "/volume" }, on_bind = { "/bind" };

static void make_watch(struct watch *watch)
{
	mkdir(watch->directory, 0755);
	watch->events = inotify_init1(IN_NONBLOCK);
	must(inotify_add_watch(watch->events, watch->directory, IN_CREATE) >= 0, "inotify_add_watch");
}

static verdict look_at_watch(struct watch *watch)
{
	char path[100], buffer[4096];
	snprintf(path, sizeof(path), "%s/appears", watch->directory);
	must(close(creat(path, 0600)) == 0, path);
	while (soon_readable(watch->events)) {
		ssize_t size = read(watch->events, buffer, sizeof(buffer));
		/* Other files may have appeared as well. */
		if (memmem(buffer, size, "appears", sizeof("appears")))
			return NULL;
	}
	return "no event comes";
}

static void make_inotify(void) { make_watch(&on_root); }
static verdict look_at_inotify(void) { return look_at_watch(&on_root); }
static void make_inotify_on_tmpfs(void) { make_watch(&on_tmpfs); }
static verdict look_at_inotify_on_tmpfs(void) { return look_at_watch(&on_tmpfs); }
static void make_inotify_on_a_volume(void) { make_watch(&on_volume); }
static verdict look_at_inotify_on_a_volume(void) { return look_at_watch(&on_volume); }
static void make_inotify_on_a_bind_mount(void) { make_watch(&on_bind); }
static verdict look_at_inotify_on_a_bind_mount(void) { return look_at_watch(&on_bind); }

/* === memory === */

static char *shared;
static pid_t echo;

static void make_anonymous_shared_memory(void)
{
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	must(shared != MAP_FAILED, "mmap");
	strcpy(shared, "kept");
	echo = fork();
	if (echo == 0)
		for (;;) {
			if (shared[100] == 'x')
				shared[200] = 'y';
			usleep(1000);
		}
}

static verdict look_at_anonymous_shared_memory(void)
{
	if (strcmp(shared, "kept"))
		return "its content is another";
	shared[100] = 'x';
	for (int i = 0; i < 5000 && shared[200] != 'y'; i++)
		usleep(1000);
	kill(echo, SIGKILL);
	return shared[200] == 'y' ? NULL : "it is shared no more";
}

static char *named;

static void make_posix_shared_memory(void)
{
	int fd = shm_open("/object", O_CREAT | O_RDWR, 0600);
	must(fd >= 0 && ftruncate(fd, 4096) == 0, "shm_open");
	named = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	strcpy(named, "kept");
	close(fd);
}

static verdict look_at_posix_shared_memory(void)
{
	char content[5] = { 0 };
	if (strcmp(named, "kept"))
		return "its content is another";
	strcpy(named, "next");
	int fd = shm_open("/object", O_RDONLY, 0);
	must(fd >= 0 && read(fd, content, 4) == 4, "shm_open");
	return strcmp(content, "next") ? "it and its file are two" : NULL;
}

static char *segment;
static int segment_id, semaphore_id, queue_id;

static void make_sysv_shared_memory(void)
{
	segment_id = shmget(KEY, 4096, IPC_CREAT | 0600);
	segment = shmat(segment_id, NULL, 0);
	must(segment != (char *)-1, "shmat");
	strcpy(segment, "kept");
}

static verdict look_at_sysv_shared_memory(void)
{
	if (strcmp(segment, "kept"))
		return "its content is another";
	return shmget(KEY, 4096, 0) == segment_id ? NULL : "its id is another";
}

static void make_sysv_semaphore(void)
{
	semaphore_id = semget(KEY, 2, IPC_CREAT | 0600);
	must(semctl(semaphore_id, 1, SETVAL, 7) == 0, "semctl");
}

static verdict look_at_sysv_semaphore(void)
{
	if (semget(KEY, 2, 0) != semaphore_id)
		return "its id is another";
	return semctl(semaphore_id, 1, GETVAL) == 7 ? NULL : "its value is another";
}

struct message {
	long type;
	char text[8];
};

static void make_sysv_message_queue(void)
{
	struct message message = { 5, "waiting" };
	queue_id = msgget(KEY, IPC_CREAT | 0600);
	must(msgsnd(queue_id, &message, sizeof(message.text), 0) == 0, "msgsnd");
}

static verdict look_at_sysv_message_queue(void)
{
	struct message message = { 0 };
	if (msgrcv(queue_id, &message, sizeof(message.text), 5, IPC_NOWAIT) < 0)
		return "its message is gone";
	return strcmp(message.text, "waiting") ? "its message is another" : NULL;
}

/* === signals and time === */

static int signals;

static void make_signalfd(void)
{
	sigset_t mask;
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR1);
	sigprocmask(SIG_BLOCK, &mask, NULL);
	signals = signalfd(-1, &mask, 0);
	must(signals >= 0, "signalfd");
	raise(SIGUSR1);
}

static verdict look_at_signalfd(void)
{
	struct signalfd_siginfo info;
	for (int i = 0; i < 2; i++) {
		if (!soon_readable(signals))
			return i ? "no new signal comes" : "the pending signal is gone";
		must(read(signals, &info, sizeof(info)) == sizeof(info), "read");
		if (info.ssi_signo != SIGUSR1)
			return "it is another signal";
		raise(SIGUSR1);
	}
	return NULL;
}

static volatile sig_atomic_t n_ticks;
static timer_t timer;

static void tick(int number) { n_ticks += number == SIGRTMIN + 1; }

static int ticks(void)
{
	int before = n_ticks;
	for (int i = 0; i < 500 && n_ticks < before + 2; i++)
		usleep(10000);
	return n_ticks >= before + 2;
}

static void make_posix_timer(void)
{
	struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
	struct itimerspec often = { { 0, 50000000 }, { 0, 50000000 } };
	signal(SIGRTMIN + 1, tick);
	must(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0, "timer_create");
	must(timer_settime(timer, 0, &often, NULL) == 0, "timer_settime");
	must(ticks(), "ticks");
}

static verdict look_at_posix_timer(void)
{
	struct itimerspec now;
	if (!ticks())
		return "it stands still";
	must(timer_gettime(timer, &now) == 0 && timer_delete(timer) == 0, "timer");
	return now.it_interval.tv_nsec == 50000000 ? NULL : "its interval is another";
}

/* === a process that is mostly between a vfork and its child's end === */

static pid_t forking;

static void make_vfork(void)
{
	forking = fork();
	while (forking == 0) {
		/* Like vfork, but for the memory, so that the child may take its time. */
		if (syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) == 0) {
			usleep(50000);
			_exit(0);
		}
		wait(NULL);
		usleep(5000);
	}
}

static verdict look_at_vfork(void)
{
	kill(forking, SIGKILL);
	return waitpid(forking, NULL, 0) == forking ? NULL : "it is gone";
}

/* The same, and its child never ends. */
static void make_endless_vfork(void)
{
	forking = fork();
	if (forking == 0 && syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0) == 0)
		for (;;)
			pause();
}

static const struct {
	const char *name;
	void (*make)(void);
	verdict (*look)(void);
} objects[] = {
#define OBJECT(name) { #name, make_##name, look_at_##name }
	OBJECT(inotify),
	OBJECT(inotify_on_tmpfs),
	OBJECT(inotify_on_a_volume),
	OBJECT(inotify_on_a_bind_mount),
	OBJECT(anonymous_shared_memory),
	OBJECT(posix_shared_memory),
	OBJECT(sysv_shared_memory),
	OBJECT(sysv_semaphore),
	OBJECT(sysv_message_queue),
	OBJECT(signalfd),
	OBJECT(posix_timer),
	OBJECT(vfork),
	{ "endless_vfork", make_endless_vfork, look_at_vfork },
};
#define N_OBJECTS (sizeof(objects) / sizeof(objects[0]))

static unsigned find(const char *name)
{
	for (unsigned i = 0; i < N_OBJECTS; i++)
		if (!strcmp(objects[i].name, name))
			return i;
	printf("there is no object %s\n", name);
	exit(1);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 1; i < argc; i++)
		objects[find(argv[i])].make();
	puts("ready");
	while (access("/tmpfs/go", F_OK))
		usleep(10000);
	for (int i = 1; i < argc; i++) {
		verdict why = objects[find(argv[i])].look();
		printf("%s %s%s\n", argv[i], why ? "failed: " : "ok", why ? why : "");
	}
	puts("done");
	for (;;)
		pause();
}

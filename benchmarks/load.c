/* Load for the endpoint: pictures posted over keep-alive HTTP/1.1 connections, one thread, one JSON object at the end.
 *
 *     cc -O2 -o build/load benchmarks/load.c
 *     build/load --concurrency 32 --seconds 10 http://127.0.0.1:8501/v1/models/ants:classify-image *.jpg
 *     build/load --rate 2000 --connections 512 --seconds 60 URL FILE...
 *
 * Closed loop (--concurrency): so many connections, each of which sends its next request as soon as it is answered.
 * Open loop (--rate): requests are due by a schedule, whatever becomes of those before, and latency counts from when a
 * request was due. One that finds all connections busy is not sent, and counted as "unsent".
 *
 * Each request sends the next file. Those due within --seconds after --warmup are counted, and all of these are waited
 * for. "throughput" is of 2xx answers that arrived within that time, a second. Latencies are in milliseconds.
 * "versions" counts the 2xx answers by their X-Model-Version, and "unversioned" those without it.
 *
 * "errors" are requests without an answer: refused (no connection), reset, closed (before the answer's end), timeout,
 * malformed (not HTTP/1.x), other. None is tried again. A server may answer before it has read the whole body: then no
 * more of it is sent, and the connection is closed.
 *
 * --slow N opens N more connections that send a request's head and then a byte of its body a second, or, with
 * --slow-headers, a byte of its head. They are opened again when the server ends them; what it answered is in "slow".
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define HEAD_BYTES 16384
#define READ_BYTES 65536
#define SLOW_BODY 1000000 /* declared; below any sensible limit, so that only its slowness counts against it */
#define MILLISECOND 1000000LL
#define SECOND 1000000000LL
#define TICK (10 * MILLISECOND)
#define PAUSE (10 * MILLISECOND) /* after an error, so that a server that is gone is not asked a million times */

enum error { REFUSED, RESET, CLOSED, TIMEOUT, MALFORMED, OTHER, ERRORS };
static const char *const ERROR_NAMES[ERRORS] = {"refused", "reset", "closed", "timeout", "malformed", "other"};

/* What is read next of an answer. */
enum part { HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_CLOSED };

struct file {
    char *head;
    size_t head_size;
    char *body;
    size_t body_size;
};

struct connection {
    int fd; /* -1: to be opened before the next request */
    bool slow;
    bool busy;     /* a request is under way */
    bool counted;  /* ... and was due within the time that counts */
    bool finishing; /* answered before all of it was sent: the rest follows, and then the next request */
    bool unwritable; /* the server takes no more, but may have answered */
    int64_t due;   /* of the request; of the next byte, if slow */
    int64_t free_from; /* of the pause after an error */
    const struct file *file;
    size_t sent; /* bytes of head and body; of a slow connection, of the body or the last header */
    size_t start_sent; /* of a slow connection: bytes of what is sent at once */

    enum part part;
    char head[HEAD_BYTES + 1];
    size_t head_size;
    int status;
    bool keep;
    uint64_t left; /* bytes of the body or the chunk */
    char line[32]; /* the chunk's size, or the end of a trailer */
    size_t line_size;
    char version[64];
};

struct latencies {
    uint32_t *microseconds;
    size_t count, room;
};

struct version {
    char name[64];
    uint64_t count;
};

/* Options. */
static struct sockaddr_in address;
static char host[64];
static const char *path;
static struct file *files;
static size_t file_count;
static double rate; /* a second; 0: closed loop */
static size_t connection_count = 1, slow_count;
static bool slow_headers;
static int64_t timeout = 30 * SECOND;
static char *slow_start;
static size_t slow_start_size;

/* State. */
static int poller = -1, timer = -1;
static struct connection *connections; /* first those of the load, then the slow ones */
static struct connection **idle;       /* open loop: those not busy */
static size_t idle_count, busy_count, next_file;
static int64_t count_from, count_until;

/* Results, by status. */
static struct latencies latencies[600];
static uint64_t errors[ERRORS], requests, unsent, succeeded_in_time, unversioned;
static struct version *versions;
static size_t version_count;
static uint64_t slow_opened, slow_closed, slow_answers[600];

static void die(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

static void die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(2);
}

static void *room_for(void *old, size_t count, size_t size) {
    void *new = reallocarray(old, count ? count : 1, size);
    if (!new)
        die("out of memory");
    return new;
}

static char *text(const char *format, ...) __attribute__((format(printf, 1, 2)));

static char *text(const char *format, ...) {
    char *result;
    va_list arguments;
    va_start(arguments, format);
    if (vasprintf(&result, format, arguments) < 0)
        die("out of memory");
    va_end(arguments);
    return result;
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

/* ------------------------------------------------------------------------------------------------------- results */

static void record_latency(int status, int64_t nanoseconds) {
    struct latencies *of = &latencies[status];
    if (of->count == of->room) {
        of->room = of->room ? 2 * of->room : 1024;
        of->microseconds = room_for(of->microseconds, of->room, sizeof *of->microseconds);
    }
    of->microseconds[of->count++] = (uint32_t)(nanoseconds / 1000);
}

static void record_version(const char *name) {
    if (!*name) {
        unversioned++;
        return;
    }
    for (size_t i = 0; i < version_count; i++) {
        if (!strcmp(versions[i].name, name)) {
            versions[i].count++;
            return;
        }
    }
    versions = room_for(versions, version_count + 1, sizeof *versions);
    strcpy(versions[version_count].name, name);
    versions[version_count++].count = 1;
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

/* The smallest that at least this part of them does not exceed, in milliseconds. */
static double quantile(const struct latencies *of, double part) {
    size_t rank = (size_t)(part * (double)of->count);
    if ((double)rank < part * (double)of->count)
        rank++;
    return of->microseconds[rank ? rank - 1 : 0] / 1000.0;
}

static void print_results(void) {
    double seconds = (double)(count_until - count_from) / SECOND;
    printf("{\"seconds\": %.3f, \"requests\": %llu, \"throughput\": %.2f, \"unsent\": %llu, \"status\": {", seconds,
           (unsigned long long)requests, (double)succeeded_in_time / seconds, (unsigned long long)unsent);
    const char *comma = "";
    for (int status = 100; status < 600; status++) {
        struct latencies *of = &latencies[status];
        if (!of->count)
            continue;
        qsort(of->microseconds, of->count, sizeof *of->microseconds, ascending);
        printf("%s\"%d\": {\"count\": %zu, \"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}", comma, status,
               of->count, quantile(of, 0.5), quantile(of, 0.9), quantile(of, 0.99), quantile(of, 1));
        comma = ", ";
    }
    printf("}, \"errors\": {");
    for (int kind = 0; kind < ERRORS; kind++)
        printf("%s\"%s\": %llu", kind ? ", " : "", ERROR_NAMES[kind], (unsigned long long)errors[kind]);
    printf("}, \"versions\": {");
    for (size_t i = 0; i < version_count; i++)
        printf("%s\"%s\": %llu", i ? ", " : "", versions[i].name, (unsigned long long)versions[i].count);
    printf("}, \"unversioned\": %llu, \"slow\": {\"opened\": %llu, \"closed\": %llu, \"status\": {",
           (unsigned long long)unversioned, (unsigned long long)slow_opened, (unsigned long long)slow_closed);
    comma = "";
    for (int status = 100; status < 600; status++) {
        if (slow_answers[status]) {
            printf("%s\"%d\": %llu", comma, status, (unsigned long long)slow_answers[status]);
            comma = ", ";
        }
    }
    printf("}}}\n");
}

/* --------------------------------------------------------------------------------------------------- connections */

static void close_connection(struct connection *c) {
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
}

/* Opens one without waiting for it: the first write fails with EAGAIN until it is there. 0, or what went wrong. */
static int open_connection(struct connection *c) {
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die("no socket: %s; lower the number of connections, or raise ulimit -n", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    c->unwritable = false;
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS && errno != EINTR) {
        int reason = errno;
        close_connection(c);
        return reason;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event))
        die("epoll_ctl: %s", strerror(errno));
    return 0;
}

static enum error kind_of(int reason) {
    switch (reason) {
    case ECONNREFUSED:
        return REFUSED;
    case ECONNRESET:
    case EPIPE:
        return RESET;
    case ETIMEDOUT:
        return TIMEOUT;
    default:
        return OTHER;
    }
}

/* The connection has no request any more. */
static void release(struct connection *c) {
    if (!c->busy)
        return;
    c->busy = false;
    busy_count--;
    if (rate)
        idle[idle_count++] = c;
}

static void fail(struct connection *c, enum error kind, int64_t at) {
    close_connection(c);
    c->finishing = false;
    if (c->slow) {
        slow_closed++;
        c->due = at + SECOND;
        return;
    }
    if (c->counted)
        errors[kind]++;
    c->free_from = at + PAUSE;
    release(c);
}

static void answered(struct connection *c, int64_t at, bool whole_request_sent) {
    if (!c->keep || c->unwritable)
        close_connection(c);
    if (c->slow) {
        slow_answers[c->status]++;
        close_connection(c);
        c->due = at + SECOND;
        return;
    }
    bool success = c->status >= 200 && c->status < 300;
    if (success && at >= count_from && at < count_until)
        succeeded_in_time++;
    if (c->counted) {
        record_latency(c->status, at - c->due);
        if (success)
            record_version(c->version);
    }
    c->counted = false; /* What goes wrong from here on is no error of this request. */
    c->finishing = c->fd >= 0 && !whole_request_sent;
    if (!c->finishing)
        release(c);
}

/* Whether the rest of a request that has its answer is still on its way; else the connection is ready for the next. */
static bool is_finishing(struct connection *c, bool whole_request_sent) {
    if (c->finishing && (whole_request_sent || c->unwritable)) {
        c->finishing = false;
        if (c->unwritable)
            close_connection(c);
        release(c);
    }
    return c->finishing;
}

/* -------------------------------------------------------------------------------------------------------- answers */

static bool is_token_in(const char *list, const char *token) {
    size_t size = strlen(token);
    for (const char *at = list; *at;) {
        at += strspn(at, " \t,");
        size_t length = strcspn(at, " \t,");
        if (length == size && !strncasecmp(at, token, size))
            return true;
        at += length;
    }
    return false;
}

/* Whether the text is digits alone, and their value. */
static bool number(const char *digits, int base, uint64_t *value) {
    char *end;
    errno = 0;
    if (!*digits || strspn(digits, base == 16 ? "0123456789abcdefABCDEF" : "0123456789") != strlen(digits))
        return false;
    *value = strtoull(digits, &end, base);
    return !errno;
}

/* Reads a whole head, which ends in an empty line. False: it is not HTTP/1.x. */
static bool parse_head(struct connection *c) {
    bool chunked = false, sized = false;
    char *save, *line = strtok_r(c->head, "\r\n", &save);
    if (!line || strncmp(line, "HTTP/1.", 7) || (line[7] != '0' && line[7] != '1') || line[8] != ' ')
        return false;
    c->keep = line[7] == '1';
    if (strspn(line + 9, "0123456789") != 3 || (line[12] && line[12] != ' '))
        return false;
    c->status = atoi(line + 9);
    if (c->status < 100 || c->status >= 600)
        return false;
    c->version[0] = 0;
    c->left = 0;
    while ((line = strtok_r(NULL, "\r\n", &save))) {
        char *value = strchr(line, ':');
        if (!value)
            return false;
        *value++ = 0;
        value += strspn(value, " \t");
        for (char *end = value + strlen(value); end > value && (end[-1] == ' ' || end[-1] == '\t');)
            *--end = 0;
        if (!strcasecmp(line, "content-length")) {
            if (!number(value, 10, &c->left))
                return false;
            sized = true;
        } else if (!strcasecmp(line, "transfer-encoding")) {
            chunked = is_token_in(value, "chunked");
        } else if (!strcasecmp(line, "connection")) {
            if (is_token_in(value, "close"))
                c->keep = false;
            else if (is_token_in(value, "keep-alive"))
                c->keep = true;
        } else if (!strcasecmp(line, "x-model-version")) {
            if (strlen(value) >= sizeof c->version)
                return false;
            for (const char *byte = value; *byte; byte++) /* It is written into JSON as it is. */
                if (*byte < ' ' || *byte > '~' || *byte == '"' || *byte == '\\')
                    return false;
            strcpy(c->version, value);
        }
    }
    c->line_size = 0;
    if (c->status < 200 || c->status == 204 || c->status == 304) {
        c->left = 0;
        c->part = LENGTH;
    } else if (chunked) {
        c->part = CHUNK_SIZE;
    } else if (sized) {
        c->part = LENGTH;
    } else {
        c->part = UNTIL_CLOSED;
        c->keep = false;
    }
    return true;
}

enum progress { MORE, WHOLE, BAD };

/* Takes what has arrived of an answer, `size` bytes. */
static enum progress take(struct connection *c, const char *data, size_t size) {
    size_t at = 0;
    for (;;) {
        size_t rest = size - at;
        switch (c->part) {
        case HEAD: {
            if (!rest)
                return MORE;
            if (c->head_size == HEAD_BYTES)
                return BAD;
            c->head[c->head_size++] = data[at++];
            if (c->head_size < 4 || memcmp(c->head + c->head_size - 4, "\r\n\r\n", 4))
                break;
            c->head[c->head_size] = 0;
            if (strlen(c->head) != c->head_size || !parse_head(c))
                return BAD;
            c->head_size = 0;
            if (c->status < 200) /* 100 Continue: the answer is still to come. */
                c->part = HEAD;
            break;
        }
        case LENGTH: {
            size_t taken = c->left < rest ? c->left : rest;
            c->left -= taken;
            at += taken;
            if (c->left)
                return MORE;
            if (at < size) /* Nobody asked for more. */
                c->keep = false;
            return WHOLE;
        }
        case CHUNK: {
            size_t taken = c->left < rest ? c->left : rest;
            c->left -= taken;
            at += taken;
            if (c->left)
                return MORE;
            c->part = CHUNK_END;
            c->line_size = 0;
            break;
        }
        case CHUNK_SIZE:
        case CHUNK_END: {
            if (!rest)
                return MORE;
            char byte = data[at++];
            if (byte != '\n') {
                if (c->line_size == sizeof c->line - 1)
                    return BAD;
                c->line[c->line_size++] = byte;
                break;
            }
            if (!c->line_size || c->line[c->line_size - 1] != '\r')
                return BAD;
            c->line[c->line_size - 1] = 0;
            c->line_size = 0;
            if (c->part == CHUNK_END) {
                if (c->line[0])
                    return BAD;
                c->part = CHUNK_SIZE;
                break;
            }
            c->line[strcspn(c->line, " \t;")] = 0;
            if (!number(c->line, 16, &c->left))
                return BAD;
            c->part = c->left ? CHUNK : TRAILER;
            break;
        }
        case TRAILER: { /* Lines until an empty one; `line_size` counts this line's bytes. */
            if (!rest)
                return MORE;
            char byte = data[at++];
            if (byte == '\n' && !c->line_size) {
                if (at < size)
                    c->keep = false;
                return WHOLE;
            }
            if (byte == '\n')
                c->line_size = 0;
            else if (byte != '\r')
                c->line_size++;
            break;
        }
        case UNTIL_CLOSED:
            return MORE;
        }
    }
}

static size_t request_size(const struct connection *c) {
    return c->file->head_size + c->file->body_size;
}

/* Sends as much of the request as the connection takes. False: it failed, and is closed. */
static bool send_some(struct connection *c, int64_t at) {
    const struct file *file = c->file;
    while (!c->unwritable && c->sent < request_size(c)) {
        size_t of_head = c->sent < file->head_size ? c->sent : file->head_size;
        size_t of_body = c->sent - of_head;
        struct iovec pieces[2] = {
            {.iov_base = file->head + of_head, .iov_len = file->head_size - of_head},
            {.iov_base = file->body + of_body, .iov_len = file->body_size - of_body},
        };
        ssize_t sent = writev(c->fd, pieces, 2);
        if (sent >= 0) {
            c->sent += (size_t)sent;
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno == EPIPE || errno == ECONNRESET) {
            c->unwritable = true; /* An answer may lie here already. */
        } else if (errno != EINTR) {
            fail(c, kind_of(errno), at);
            return false;
        }
    }
    return true;
}

/* Reads until there is no more: the end of the connection may come with the end of the answer, in one edge. */
static void receive(struct connection *c) {
    static char buffer[READ_BYTES];
    while (c->fd >= 0) {
        ssize_t size = read(c->fd, buffer, sizeof buffer);
        int reason = errno;
        if (size < 0 && reason == EINTR)
            continue;
        if (size < 0 && reason == EAGAIN) {
            if (c->unwritable)
                fail(c, RESET, now());
            return;
        }
        if (c->finishing || (!c->busy && !c->slow)) { /* No answer is due: it may only end. */
            c->unwritable = true;
            if (!is_finishing(c, false))
                close_connection(c);
            return;
        }
        if (size < 0) {
            fail(c, kind_of(reason), now());
            return;
        }
        bool all_sent = !c->slow && c->sent == request_size(c);
        if (!size) {
            if (c->part == UNTIL_CLOSED)
                answered(c, now(), all_sent);
            else
                fail(c, c->unwritable ? RESET : CLOSED, now());
            return;
        }
        enum progress progress = take(c, buffer, (size_t)size);
        if (progress == BAD)
            fail(c, MALFORMED, now());
        else if (progress == WHOLE)
            answered(c, now(), all_sent);
    }
}

/* Sends the next file; the request was due at `due`. */
static void start_request(struct connection *c, int64_t due) {
    c->busy = true;
    busy_count++;
    c->due = due;
    c->counted = due >= count_from && due < count_until;
    requests += c->counted;
    c->file = &files[next_file];
    next_file = (next_file + 1) % file_count;
    c->sent = 0;
    c->part = HEAD;
    c->head_size = 0;
    int reason = c->fd < 0 ? open_connection(c) : 0;
    if (reason)
        fail(c, kind_of(reason), now());
    else if (send_some(c, now()) && c->unwritable)
        receive(c);
}

/* ----------------------------------------------------------------------------------------------- slow connections */

/* Opens a slow connection, or sends its next byte. */
static void advance_slow(struct connection *c, int64_t at) {
    if (c->fd < 0) {
        c->sent = c->start_sent = 0;
        c->part = HEAD;
        c->head_size = 0;
        if (open_connection(c)) {
            fail(c, REFUSED, at);
            return;
        }
        slow_opened++;
    }
    c->due = at + SECOND;
    ssize_t sent;
    if (c->start_sent < slow_start_size)
        sent = write(c->fd, slow_start + c->start_sent, slow_start_size - c->start_sent);
    else
        sent = c->sent < SLOW_BODY ? write(c->fd, "x", 1) : 0;
    if (sent > 0 && c->start_sent < slow_start_size)
        c->start_sent += (size_t)sent;
    else if (sent > 0)
        c->sent++;
    else if (sent < 0 && errno == EAGAIN && c->start_sent < slow_start_size)
        c->due = at + TICK; /* Not connected yet. */
    else if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        c->unwritable = true;
        receive(c);
    }
}

/* ------------------------------------------------------------------------------------------------------- the loop */

static void handle(struct connection *c) {
    if (c->fd < 0)
        return;
    if (c->busy && !send_some(c, now()))
        return;
    if (c->finishing && !is_finishing(c, c->sent == request_size(c)))
        return;
    receive(c);
}

/* Whatever is due by time and not by an event. */
static void tick(int64_t at) {
    for (size_t i = 0; i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (c->busy && at - c->due > timeout)
            fail(c, TIMEOUT, at);
    }
    for (size_t i = connection_count; i < connection_count + slow_count; i++) {
        if (at >= connections[i].due)
            advance_slow(&connections[i], at);
    }
}

/* Closed loop: every connection that has nothing to do gets its next request. */
static void fill(int64_t at) {
    for (size_t i = 0; busy_count < connection_count && i < connection_count; i++) {
        struct connection *c = &connections[i];
        if (!c->busy && at >= c->free_from)
            start_request(c, at);
    }
}

static void arm_timer(int64_t at) {
    struct itimerspec when = {.it_value = {.tv_sec = at / SECOND, .tv_nsec = at % SECOND}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, NULL);
}

static void run(double warmup, double seconds) {
    struct epoll_event events[256];
    int64_t start = now(), last_tick = 0;
    uint64_t arrivals = 0;
    count_from = start + (int64_t)(warmup * SECOND);
    count_until = count_from + (int64_t)(seconds * SECOND);
    for (size_t i = 0; i < slow_count; i++) /* Spread over the first second, as their bytes are over every one. */
        connections[connection_count + i].due = start + SECOND * (int64_t)i / (int64_t)slow_count;
    for (;;) {
        int64_t at = now();
        if (at - last_tick >= TICK) {
            tick(at);
            last_tick = at;
        }
        if (at >= count_until) {
            if (!busy_count)
                break;
        } else if (rate) {
            int64_t due;
            while ((due = start + (int64_t)((double)arrivals * SECOND / rate)) <= at && due < count_until) {
                arrivals++;
                if (idle_count)
                    start_request(idle[--idle_count], due);
                else
                    unsent += due >= count_from;
            }
            arm_timer(due);
        } else {
            fill(at);
        }
        int count = epoll_wait(poller, events, sizeof events / sizeof *events, TICK / MILLISECOND);
        if (count < 0 && errno != EINTR)
            die("epoll_wait: %s", strerror(errno));
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                handle(events[i].data.ptr);
            else {
                uint64_t expirations;
                if (read(timer, &expirations, sizeof expirations) < 0) {
                    /* Armed anew since: nothing to read. */
                }
            }
        }
    }
}

/* -------------------------------------------------------------------------------------------------------- options */

static void parse_url(const char *url) {
    const char *prefix = "http://";
    size_t size = strlen(prefix);
    if (strncmp(url, prefix, size))
        die("the address is http://IPV4:PORT/PATH, not %s", url);
    const char *authority = url + size, *end = authority + strcspn(authority, "/");
    if ((size_t)(end - authority) >= sizeof host)
        die("the address is http://IPV4:PORT/PATH, not %s", url);
    memcpy(host, authority, (size_t)(end - authority));
    path = *end ? end : "/";
    char *name = strdup(host), *colon = name ? strchr(name, ':') : NULL;
    uint64_t port = 80;
    if (colon) {
        *colon = 0;
        if (!number(colon + 1, 10, &port) || !port || port > 65535)
            die("%s is not a port", colon + 1);
    }
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)port);
    if (!name || inet_pton(AF_INET, strcmp(name, "localhost") ? name : "127.0.0.1", &address.sin_addr) != 1)
        die("%s is not an IPv4 address", name ? name : host);
    free(name);
}

static double positive(const char *name, const char *value, bool or_zero) {
    char *end;
    double result = strtod(value, &end);
    if (*end || end == value || !(result > 0 || (or_zero && result == 0)) || result > 1e6)
        die("--%s is a number above 0 and at most a million, not %s", name, value);
    return result;
}

static size_t whole(const char *name, const char *value, bool or_zero) {
    double result = positive(name, value, or_zero);
    if (result != (double)(size_t)result)
        die("--%s is a whole number, not %s", name, value);
    return (size_t)result;
}

static void read_file(const char *name, const char *headers, struct file *file) {
    struct stat status;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status))
        die("%s: %s", name, strerror(errno));
    file->body_size = (size_t)status.st_size;
    file->body = room_for(NULL, file->body_size, 1);
    for (size_t at = 0; at < file->body_size;) {
        ssize_t size = read(fd, file->body + at, file->body_size - at);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            die("%s: %s", name, size ? strerror(errno) : "shorter than it was");
        at += (size_t)size;
    }
    close(fd);
    file->head = text("POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %zu\r\n\r\n", path, host, headers,
                      file->body_size);
    file->head_size = strlen(file->head);
}

static const char USAGE[] =
    "load [--concurrency N | --rate R --connections N] [--seconds S] [--warmup S] [--timeout S]\n"
    "     [--header 'Name: value']... [--slow N [--slow-headers]] http://IPV4:PORT/PATH FILE...";

int main(int count, char **values) {
    static const struct option OPTIONS[] = {
        {"concurrency", required_argument, NULL, 'c'}, {"rate", required_argument, NULL, 'r'},
        {"connections", required_argument, NULL, 'n'}, {"seconds", required_argument, NULL, 's'},
        {"warmup", required_argument, NULL, 'w'},      {"timeout", required_argument, NULL, 't'},
        {"header", required_argument, NULL, 'h'},      {"slow", required_argument, NULL, 'l'},
        {"slow-headers", no_argument, NULL, 'L'},      {NULL, 0, NULL, 0},
    };
    double seconds = 10, warmup = 0;
    bool closed = false, open = false;
    char *headers = text("%s", "");
    for (int option; (option = getopt_long(count, values, "", OPTIONS, NULL)) != -1;) {
        char *longer;
        switch (option) {
        case 'c':
            connection_count = whole("concurrency", optarg, false);
            closed = true;
            break;
        case 'r':
            rate = positive("rate", optarg, false);
            break;
        case 'n':
            connection_count = whole("connections", optarg, false);
            open = true;
            break;
        case 's':
            seconds = positive("seconds", optarg, false);
            break;
        case 'w':
            warmup = positive("warmup", optarg, true);
            break;
        case 't':
            timeout = (int64_t)(positive("timeout", optarg, false) * SECOND);
            break;
        case 'h':
            longer = text("%s%s\r\n", headers, optarg);
            free(headers);
            headers = longer;
            break;
        case 'l':
            slow_count = whole("slow", optarg, true);
            break;
        case 'L':
            slow_headers = true;
            break;
        default:
            die("usage: %s", USAGE);
        }
    }
    if (count - optind < 2 || (rate ? closed || !open : open))
        die("usage: %s", USAGE);

    parse_url(values[optind]);
    file_count = (size_t)(count - optind - 1);
    files = room_for(NULL, file_count, sizeof *files);
    for (size_t i = 0; i < file_count; i++)
        read_file(values[optind + 1 + (int)i], headers, &files[i]);
    slow_start = slow_headers
                     ? text("POST %s HTTP/1.1\r\nHost: %s\r\n%sX-Slow: ", path, host, headers)
                     : text("POST %s HTTP/1.1\r\nHost: %s\r\n%sContent-Length: %d\r\n\r\n", path, host, headers, SLOW_BODY);
    slow_start_size = strlen(slow_start);
    free(headers);

    struct rlimit limit;
    if (!getrlimit(RLIMIT_NOFILE, &limit)) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    signal(SIGPIPE, SIG_IGN);
    connections = calloc(connection_count + slow_count, sizeof *connections);
    if (!connections)
        die("out of memory");
    idle = room_for(NULL, connection_count, sizeof *idle);
    for (size_t i = 0; i < connection_count + slow_count; i++) {
        connections[i].fd = -1;
        connections[i].slow = i >= connection_count;
        if (i < connection_count && rate)
            idle[idle_count++] = &connections[i];
    }
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (poller < 0 || timer < 0 || epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event))
        die("epoll: %s", strerror(errno));

    run(warmup, seconds);
    print_results();

    for (size_t i = 0; i < connection_count + slow_count; i++)
        close_connection(&connections[i]);
    close(poller);
    close(timer);
    for (size_t i = 0; i < file_count; i++) {
        free(files[i].head);
        free(files[i].body);
    }
    for (int status = 0; status < 600; status++)
        free(latencies[status].microseconds);
    free(files);
    free(connections);
    free(idle);
    free(versions);
    free(slow_start);
    return 0;
}

/*
 * Reads TLS records one after the other, as many as are there. Python's ssl gives one for each
 * call, and to come and go with each 16 KiB costs time where several threads do so, which wait
 * for the interpreter in between.
 *
 * Nothing of OpenSSL is linked: records.py hands in the functions that Python's own ssl calls.
 */

/* int SSL_read(SSL *, void *, int): how many bytes; 0 or less where there are none. */
typedef int (*read_function)(void *, void *, int);
/* int SSL_get_error(const SSL *, int): why. Both as in <openssl/ssl.h>. */
typedef int (*why_function)(const void *, int);

enum { ERROR_SSL = 1, ERROR_SYSCALL = 5 };

/*
 * Fill COUNT bytes at BUFFER from the connection SSL, until READ gives none. How many it were,
 * less than zero if the connection is broken behind them; 0 says nothing of why there are none.
 */
int ddfs_read_records(read_function read, why_function why, void *ssl, unsigned char *buffer,
                      int count)
{
    int done = 0;
    while (done < count) {
        int got = read(ssl, buffer + done, count - done);
        if (got <= 0) {
            int reason = done > 0 ? why(ssl, got) : 0;
            return reason == ERROR_SSL || reason == ERROR_SYSCALL ? -done : done;
        }
        done += got;
    }
    return done;
}

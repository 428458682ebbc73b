/* Stands in for a QEMU process in /proc: usage stand_in SOCKET DESCRIPTORS.
 *
 * Connects to SOCKET, passes the connection to the peer of standard input (a unix socket), and
 * sleeps until that closes, with DESCRIPTORS more files open. The daemon takes it for the front
 * end's process and examines its descriptors.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int hand_over(int to, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data,
                             .msg_iovlen = 1,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(rights), &fd, sizeof(int));
    return sendmsg(to, &message, 0) != 1;
}

int main(int count, char **arguments) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char byte;
    if (count != 3 || strlen(arguments[1]) >= sizeof(address.sun_path))
        return 2;
    for (int number = atoi(arguments[2]); number; number--)
        open("/dev/null", O_RDWR);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strcpy(address.sun_path, arguments[1]);
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) || hand_over(0, fd)) {
        perror(arguments[1]);
        return 1;
    }
    close(fd);
    return read(0, &byte, 1) != 0;
}

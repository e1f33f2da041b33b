/* Whole trees over Debian's libnfs, whose own tools copy single files and delete none.
 *   nfstree put FOLDER URL     copies what is in FOLDER to the export's root
 *   nfstree get URL FOLDER     the other way
 *   nfstree rm URL             deletes everything under the export's root
 * Any error ends it with a message and exit code 1. Compiled by the test runner: cc nfstree.c -lnfs. */
#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <nfsc/libnfs.h>

#define PATH_BYTES_MAX 4096
#define PIECE_BYTES (256 * 1024)

static struct nfs_context *nfs;
static char piece[PIECE_BYTES];

static void fail(const char *what, const char *path) {
    fprintf(stderr, "nfstree: %s %s: %s\n", what, path, nfs_get_error(nfs));
    exit(1);
}

static void join(char *into, const char *folder, const char *name) {
    if (snprintf(into, PATH_BYTES_MAX, "%s/%s", folder, name) >= PATH_BYTES_MAX) fail("too long", name);
}

static int dots(const char *name) { return !strcmp(name, ".") || !strcmp(name, ".."); }

static void put_file(const char *local, const char *remote) {
    struct nfsfh *file;
    int fd = open(local, O_RDONLY);
    if (fd < 0) fail("cannot open", local);
    if (nfs_creat(nfs, remote, 0644, &file)) fail("create", remote);
    for (ssize_t got; (got = read(fd, piece, sizeof piece)) != 0;) {
        if (got < 0) fail("cannot read", local);
        for (ssize_t done = 0; done < got;) {
            int wrote = nfs_write(nfs, file, got - done, piece + done);
            if (wrote <= 0) fail("write", remote);
            done += wrote;
        }
    }
    if (nfs_fsync(nfs, file)) fail("fsync", remote);
    if (nfs_close(nfs, file)) fail("close", remote);
    close(fd);
}

static void put(const char *local, const char *remote) {
    char from[PATH_BYTES_MAX], to[PATH_BYTES_MAX];
    DIR *folder = opendir(local);
    if (!folder) fail("cannot open", local);
    for (struct dirent *entry; (entry = readdir(folder));) {
        if (dots(entry->d_name)) continue;
        join(from, local, entry->d_name);
        join(to, remote, entry->d_name);
        if (entry->d_type == DT_DIR) {
            if (nfs_mkdir(nfs, to)) fail("mkdir", to);
            put(from, to);
        } else {
            put_file(from, to);
        }
    }
    closedir(folder);
}

static void get_file(const char *remote, const char *local) {
    struct nfsfh *file;
    int fd = open(local, O_WRONLY | O_CREAT | O_TRUNC, 0644), got;
    if (fd < 0) fail("cannot create", local);
    if (nfs_open(nfs, remote, O_RDONLY, &file)) fail("open", remote);
    while ((got = nfs_read(nfs, file, sizeof piece, piece)) != 0) {
        if (got < 0) fail("read", remote);
        if (write(fd, piece, got) != got) fail("cannot write", local);
    }
    if (nfs_close(nfs, file)) fail("close", remote);
    close(fd);
}

/* The entries are read before anything is done to them: removing while a listing is open is another test. */
static void walk(const char *remote, const char *local) {
    char from[PATH_BYTES_MAX], to[PATH_BYTES_MAX];
    struct nfsdir *folder;
    if (nfs_opendir(nfs, *remote ? remote : "/", &folder)) fail("opendir", remote);
    for (struct nfsdirent *entry; (entry = nfs_readdir(nfs, folder));) {
        if (dots(entry->name)) continue;
        join(from, remote, entry->name);
        if (local) join(to, local, entry->name);
        if (S_ISDIR(entry->mode)) {
            if (local && mkdir(to, 0755)) fail("cannot make", to);
            walk(from, local ? to : NULL);
            if (!local && nfs_rmdir(nfs, from)) fail("rmdir", from);
        } else if (local) {
            get_file(from, to);
        } else if (nfs_unlink(nfs, from)) {
            fail("unlink", from);
        }
    }
    nfs_closedir(nfs, folder);
}

int main(int argc, char **argv) {
    nfs = nfs_init_context();
    const char *verb = argc > 2 ? argv[1] : "";
    const char *address = !strcmp(verb, "put") && argc > 3 ? argv[3] : argc > 2 ? argv[2] : "";
    struct nfs_url *url = nfs_parse_url_dir(nfs, address);
    if (!url) fail("URL", address);
    if (nfs_mount(nfs, url->server, url->path)) fail("mount", url->path);
    if (!strcmp(verb, "put") && argc == 4) put(argv[2], "");
    else if (!strcmp(verb, "get") && argc == 4) walk("", argv[3]);
    else if (!strcmp(verb, "rm") && argc == 3) walk("", NULL);
    else fail("usage", "nfstree put FOLDER URL | get URL FOLDER | rm URL");
    nfs_destroy_url(url);
    nfs_destroy_context(nfs);
    return 0;
}

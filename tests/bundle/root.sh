# A root of its own with a bundle in it and no network: sh root.sh ROOT BUNDLE PYTHON PREFIX COMMAND...
# Run under `unshare --mount`. It has this machine's programs and the Python of PREFIX, read-only and without what brings
# pip along; empty /home, /tmp and /etc; and COMMAND, run by a user who is not root where there can be one.
set -eu
root=$1 bundle=$2 python=$3 prefix=$4
shift 4

mount --make-rprivate /
mount -t tmpfs -o mode=755 none "$root"
for each in bin sbin lib lib32 lib64 libx32 usr; do
	if [ -L "/$each" ]; then
		ln -s "$(readlink "/$each")" "$root/$each"
	elif [ -d "/$each" ]; then
		mkdir "$root/$each"
		mount --rbind "/$each" "$root/$each"
	fi
done
case $prefix in
/usr | /usr/*) ;;
*)
	mkdir -p "$root$prefix"
	mount --bind "$prefix" "$root$prefix"
	mount -o remount,bind,ro "$root$prefix"
	;;
esac
mkdir -p "$root/dev" "$root/proc" "$root/etc" "$root/tmp" "$root/home/some user" "$root/carried over" "$root/none"
for each in null zero urandom; do
	: >"$root/dev/$each"
	mount --bind "/dev/$each" "$root/dev/$each"
done
mount --rbind /proc "$root/proc"
cp /etc/ld.so.cache "$root/etc/"
printf 'root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/home/some user:/bin/sh\n' >"$root/etc/passwd"
mount --bind "$bundle" "$root/carried over"
mount -o remount,bind,ro "$root/carried over"
for each in "$root$prefix"/lib/python3*/ensurepip; do
	if [ -d "$each" ]; then mount --bind "$root/none" "$each"; fi
done
chmod 1777 "$root/tmp"

as=''
if chown 1000:1000 "$root/home/some user" 2>/dev/null; then
	as='setpriv --reuid 1000 --regid 1000 --clear-groups'
fi
# shellcheck disable=SC2086
exec chroot "$root" $as env -i HOME="/home/some user" PATH=/usr/bin:/bin PYTHON="$python" sh -c 'cd && exec "$@"' sh "$@"

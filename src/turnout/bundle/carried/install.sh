#!/bin/sh
# Installs Turnout from this bundle, without an index and without root. Every file is verified before anything is
# touched; the new environment lies beside the one before, and the command is a link that is changed last.
set -eu

usage() {
	cat <<'END'
usage: sh install.sh [--key FILE] [--prefix DIR] [--python PROGRAM] [--no-model] [--no-serena]

  --key FILE        the public key (signing.pub) that must have signed this bundle, given to you by another way
  --prefix DIR      where it goes (default: ~/.local/share/turnout-env); the command is DIR/bin/turnout
  --python PROGRAM  the Python to use (default: the first on the PATH that fits)
  --no-model        without the demonstration model, if it is inside
  --no-serena       without Serena, if it is inside
END
}

say() { printf '%s\n' "$*" >&2; }

fail() {
	say "Error: $1"
	if [ $# -gt 1 ]; then say "Hint: $2"; fi
	exit "${code:-1}"
}

key='' prefix='' python='' model=yes serena=yes
while [ $# -gt 0 ]; do
	case $1 in
	--key | --prefix | --python)
		if [ $# -lt 2 ] || [ -z "$2" ]; then code=2 fail "$1 needs a value"; fi
		case $1 in
		--key) key=$2 ;;
		--prefix) prefix=$2 ;;
		--python) python=$2 ;;
		esac
		shift
		;;
	--no-model) model=no ;;
	--no-serena) serena=no ;;
	-h | --help)
		usage
		exit 0
		;;
	*)
		usage >&2
		code=2 fail "there is no option $1"
		;;
	esac
	shift
done

# What the caller's shell has must not lead Python or pip elsewhere, nor let others write what is made here.
unset CDPATH
for name in $(env | sed -n 's/^\(P[IY][PT][A-Za-z0-9_]*\)=.*/\1/p'); do
	case $name in PIP_* | PYTHON*) unset "$name" ;; esac
done
umask go-w
PYTHONDONTWRITEBYTECODE=1 PIP_CONFIG_FILE=/dev/null
export PYTHONDONTWRITEBYTECODE PIP_CONFIG_FILE

here=$(cd -- "$(dirname -- "$0")" && pwd -P)
for needed in bundle.json verify.py requirements.txt; do
	[ -f "$here/$needed" ] || fail "there is no $needed beside install.sh" "unpack the whole bundle, and run install.sh in it"
done
absolute() {
	case $1 in
	/*) printf '%s\n' "$1" ;;
	*) printf '%s/%s\n' "$(pwd -P)" "$1" ;;
	esac
}

# Read before anything is verified, so only as far as digits and dots go.
wanted=$(sed -n 's/.*"python": "\([0-9][0-9.]*\)".*/\1/p' "$here/bundle.json")
fits() { "$1" -I -S -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$wanted')" >/dev/null 2>&1; }
if [ -n "$python" ]; then
	fits "$python" || fail "$python is no Python $wanted, which this bundle is for" "name another with --python"
else
	for each in "python$wanted" python3 python; do
		if fits "$each"; then
			python=$each
			break
		fi
	done
	[ -n "$python" ] || fail "this bundle is for Python $wanted, and there is none on the PATH" \
		"install it, name it with --python, or have a bundle made for yours (turnout bundle make --python)"
fi

set -- "$here/verify.py" --here
if [ -n "$key" ]; then set -- "$@" --key "$key"; fi
id=$("$python" -I -B "$@") || exit 1
case $id in
'' | *[!A-Za-z0-9._+-]*) fail "verify.py told no id" ;;
esac
"$python" -I -c 'import venv, zlib' >/dev/null 2>&1 ||
	fail "$python lacks a part of the standard library that makes environments" "install its venv package (python3-venv)"

if [ -z "$prefix" ]; then
	[ -n "${HOME:-}" ] || fail "HOME is not set" "say where to install with --prefix DIR"
	prefix=$HOME/.local/share/turnout-env
fi
prefix=$(absolute "$prefix")
# pip writes the path of the environment's Python into a script of sh, in quotes.
case $prefix in
*[\"\$\`\\:]* | *'
'*) fail "$prefix cannot be installed to: it has a quote, \$, \`, \\, : or a line break" "choose another with --prefix DIR" ;;
esac
env=$prefix/turnout-$id
link=$prefix/bin/turnout
if [ -L "$prefix/bin" ]; then
	fail "$prefix/bin is a link, and the command is one that leads on from there" "install elsewhere with --prefix DIR"
fi
if [ -e "$link" ] || [ -L "$link" ]; then
	case $(readlink -- "$link") in
	../turnout-*/bin/turnout) ;;
	*) fail "$link is there, and is no link that this made" "install elsewhere with --prefix DIR" ;;
	esac
fi
# It may be anybody's who can write there, and what is in it is run.
if [ -e "$env" ] && [ -n "$(find "$env" -prune ! -user "$(id -u)")" ]; then
	fail "$env is there, and belongs to another user" "install elsewhere with --prefix DIR"
fi

made=no
undo() {
	code=$?
	trap - EXIT
	if [ "$made" = yes ]; then
		rm -rf -- "$env" "$prefix/bin/.turnout-new"
		rmdir -- "$prefix/bin" "$prefix" 2>/dev/null || :
		say "Nothing of it was kept in $prefix."
	fi
	exit "$code"
}
trap undo EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p -- "$prefix" || fail "$prefix cannot be made" "install elsewhere with --prefix DIR"
# Held until this shell ends, however that is.
exec 9<"$prefix"
"$python" -I -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null ||
	fail "another installation to $prefix is under way" "wait for it"
if [ -f "$env/.installed" ]; then
	say "already there: $env"
else
	rm -rf -- "$env" # what an installation left that was killed
	say "making an environment in $env"
	made=yes
	"$python" -I -m venv --without-pip "$env" || fail "the environment was not made"
	set -- "$here"/wheels/pip-*.whl
	"$env/bin/python" -I "$1/pip" --isolated install --no-index --require-hashes --no-cache-dir --quiet --no-input \
		--disable-pip-version-check --find-links "$here/wheels" -r "$here/requirements.txt" || fail "pip did not install it"
	"$env/bin/python" -I -m pip --isolated --disable-pip-version-check check >&2 || fail "the packages do not fit together"
fi
version=$("$env/bin/turnout" --version) || fail "what was installed does not start"

if [ "$serena" = yes ] && [ -d "$here/serena" ]; then
	say "installing Serena"
	release=$(sed -n 's/.*"serena": "\([0-9][0-9.]*\)".*/\1/p' "$here/bundle.json")
	"$env/bin/turnout" code install --wheelhouse "$here/serena" --serena "$release" >&2 ||
		fail "Serena was not installed" "--no-serena leaves it out"
fi
if [ "$model" = yes ] && [ -d "$here/models" ]; then
	set -- "$here"/models/*.gguf
	"$env/bin/turnout" embedded install --file "$1" >&2 ||
		fail "the demonstration model was not installed" "--no-model leaves it out"
fi

mkdir -p -- "$prefix/bin"
rm -f -- "$prefix/bin/.turnout-new"
ln -s "../turnout-$id/bin/turnout" "$prefix/bin/.turnout-new"
: >"$env/.installed"
mv -f -- "$prefix/bin/.turnout-new" "$link"
made=no
for other in "$prefix"/turnout-*; do
	if [ "$other" != "$env" ] && [ -f "$other/.installed" ]; then say "the one before is kept until you delete it: $other"; fi
done
say "installed: $version"
say "the command: $link"
say "next: put $prefix/bin on your PATH; turnout doctor says what is missing"
if [ -d "$here/models" ] && [ "$model" = yes ]; then
	say "      turnout ask --embedded \"Write a function that adds two numbers\""
fi

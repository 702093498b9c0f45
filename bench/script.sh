# The row "shell": what build and start-up scripts do: tests, strings, functions, pipes, small programs.
set -e
dir=/dev/shm/viv-bench-shell
mkdir "$dir"
count() {
    local n=0 i=0
    while [ $i -lt "$1" ]; do
        i=$((i + 1))
        case $i in
        *7*) n=$((n + 3)) ;;
        *[02468]) n=$((n + 1)) ;;
        *) [ $((i % 3)) -eq 0 ] && n=$((n + 2)) || : ;;
        esac
    done
    echo $n
}
echo "count $(count 30000)"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    name=file$i.conf
    cat > "$dir/$name" <<END
name=${name%.conf}
value=$((i * i))
path=/usr/lib/${name##*.}
END
    . "$dir/$name"
    echo "$name $value $path" | sed -e 's/file/FILE/' | tr a-z A-Z
done
for round in 1 2 3 4 5 6 7 8 9 10; do
    cat "$dir"/*.conf | grep value | cut -d= -f2 | sort -n | tail -n 2
    ls "$dir" | wc -l
    basename "$(dirname /a/b/$round/d)"
    seq 1 2000 | awk '{ s += $1 * $1 % 7 } END { print s }'
    expr $round + 1
done
i=0
while [ $i -lt 150 ]; do
    i=$((i + 1))
    word=$(echo "a b c $i" | cut -d' ' -f4)
    [ "$word" = $i ] || echo wrong
done
rm -r "$dir"
echo done

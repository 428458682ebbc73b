# Writes files whose content follows from their number, deletes some, verifies the rest.
# Needs SECONDS_TO_RUN, FILE_MIB and MOST; keeps its counts in /run/integrity. Creating
# /run/integrity-stop ends it early.
folder=/tmp/integrity
sums=/run/integrity-sums
mkdir $folder $sums
# 1 MiB that differs all over, made once; each file is its own number followed by copies of it,
# so no two files are alike and every page of every file differs from its neighbours'.
dd if=/dev/urandom of=/run/seed bs=1M count=1 2>/dev/null

written=0 verified=0 deleted=0 bad=0 finished=0 first=1 last=0

content() {
    printf '%016d' "$1"
    copies=$FILE_MIB
    while [ "$copies" -gt 0 ]; do
        cat /run/seed
        copies=$((copies - 1))
    done
}

tell() {
    echo "written=$written verified=$verified deleted=$deleted bad=$bad finished=$finished" \
        >/run/integrity.new
    mv /run/integrity.new /run/integrity
}

sum() { md5sum | cut -d' ' -f1; }

write_one() {
    last=$((last + 1))
    content "$last" | tee "$folder/$last" | sum >"$sums/$last"
    written=$((written + 1))
}

verify() {
    verified=$((verified + 1))
    [ "$(sum <"$folder/$1")" = "$(cat "$sums/$1")" ] && return
    # cmp -l prints one line for each byte that differs. Should it find none (a bad sum, a read
    # that went wrong only once), the file still counts.
    differing=$(content "$1" | cmp -l - "$folder/$1" 2>&1 | wc -l)
    bad=$((bad + (differing > 0 ? differing : 1)))
}

# Every other file of the older half is deleted unverified, so that its pages are freed,
# reported and reused; the rest is verified first.
retire_one() {
    [ $((first % 2)) = 0 ] || verify "$first"
    rm "$folder/$first" "$sums/$first"
    deleted=$((deleted + 1))
    first=$((first + 1))
}

end=$(($(cut -d. -f1 /proc/uptime) + SECONDS_TO_RUN))
while [ "$(cut -d. -f1 /proc/uptime)" -lt $end ] && [ ! -e /run/integrity-stop ]; do
    write_one
    verify $((first + written % (last - first + 1)))
    # Falls to a third now and then: bursts of free pages, as real guests have them.
    if [ $((last - first)) -ge "$MOST" ]; then
        while [ $((last - first)) -gt $((MOST / 3)) ]; do retire_one; done
    fi
    tell
done
while [ "$first" -le "$last" ]; do
    verify "$first"
    rm "$folder/$first" "$sums/$first"
    first=$((first + 1))
done
finished=1
tell

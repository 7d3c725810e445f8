# A tree of everything, made by a guest in an empty share.
umask 022
chown 0:0 . && chmod 755 .
mkdir -m 1777 dir; mkdir -m 0 shut; mkdir empty; mkdir -p one/two/three
echo data >dir/file; chown 1234:4321 dir/file; chmod 4755 dir/file
ln dir/file one/hard; ln dir/file a-hard
ln -s ../no/such dir/soft; ln dir/soft one/soft-too
ln -s "$(printf '\377/%.0s' $(seq 1000))" long-link
chown -h 4294967294:3000000000 dir/soft
echo high >high; chown 4294967294:3000000000 high
mknod null c 1 3; mknod wide c 4095 1048574; mknod -m 640 disk b 300 70000; mkfifo -m 600 fifo
ln null one/two/null; ln fifo one/fifo; chmod 666 one/two/null; chown 0:5 fifo
printf x >"$(printf 'dir/\377name')"; echo n >"$(printf 'new\nline')"; echo l >"$(printf %0255d 7)"
# Replaced in every way: renamed over, removed and made anew, by another type.
echo first >replaced; chown 7:7 replaced; echo second >dir/new; chmod 2755 dir/new; mv dir/new replaced
echo third >again; chown 9:9 again; rm again; echo fourth >again
echo link >was-file; ln -sfn target was-file
ln -s x was-link; rm was-link; mkdir was-link; echo in >was-link/in
mkdir folder; echo x >folder/x; mv folder one/two/renamed; mv one/two/three three
truncate -s 300000 holes; echo end >>holes
echo old >old; touch -d @1000000000 old dir; touch -h -d @-77.5 long-link
perl -e 'use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0); bind(S, sockaddr_un("sock")) or die'
# 226 is setxattr: the image has no setfattr.
perl -e 'for my $file ("high", "three") { for my $name ("user.a", "user.b") {
    my ($f, $n, $v) = ($file, $name, "value\tof $name");
    syscall(226, $f, $n, $v, length $v, 0) == 0 or die "$f: $!" } }'

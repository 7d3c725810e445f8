# What packages, tools and builds do to a tree. Each line once triggered a defect of QEMU's mapped-file where
# metadata was missing, orphaned or unshared (docs/virtfs-format.md, section 2). For the tree of test_oracle.py.
umask 0  # ext4 without ACLs takes it from the mode of links, too
mv dir/file dir/moved
mv 'dir/high ids' shut/here
mv shut/inside dir/
ln s-long shut/link-of-a-link
ln t-chr empty/chr
ln dir/moved empty/hard
chmod 4711 z-link-file
chown 77:88 empty/hard
chown -h 5:6 s-dangling
chown 4294967294:3000000000 dir
chmod 3710 dir
mkdir made
mv -T made w-empty
mv -T w-attributes w-empty
rmdir w-other-empty
mv -fT t-blk dir/old
mv -fT s-absolute t-chr-wide
ln -sfn elsewhere z-link-symlink
rm t-fifo; mkfifo -m 604 t-fifo
rm z-link-fifo; echo now a file >z-link-fifo
mv t-chr-widest shut/.; mv shut/t-chr-widest w-char
echo more >>'w- leading'
echo less >v-user-attribute
truncate -s 1000 w-sparse
rm -rf w-$(printf '\303')*
mkdir -m 2770 deep; mkdir deep/er; cp dir/inside deep/er/copy; mv deep dir/
rm -r dir/deep/er
touch -d @1234567890 dir/deep shut/here

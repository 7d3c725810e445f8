/* What a tree is made of, see tree.h: folders, their items, and a table of these by name. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tree.h"

bool folder_path(const struct folder *folder, char *path, size_t size)
{
	const struct item *item;
	size_t length = 0, end;

	for (item = folder->self; item; item = item->in->self)
		length += strlen(item->name) + 1;
	if (length > size)
		return false;
	end = length ? length - 1 : 0;
	path[end] = '\0';
	for (item = folder->self; item; item = item->in->self) {
		size_t n = strlen(item->name);

		end -= n;
		memcpy(path + end, item->name, n);
		if (end)
			path[--end] = '/';
	}
	return true;
}

bool item_path(const struct item *item, char *path, size_t size)
{
	size_t length;

	if (!folder_path(item->in, path, size))
		return false;
	length = strlen(path);
	return (size_t)snprintf(path + length, size - length, "%s%s", length ? "/" : "",
				item->name) < size - length;
}

/* The table of items, by folder and name. */

static size_t hash(const struct folder *folder, const char *name)
{
	uint64_t h = (uint64_t)(uintptr_t)folder * 0x9E3779B97F4A7C15u;

	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 0x100000001B3u;
	return (size_t)(h ^ h >> 29);
}

static struct item **bucket(struct tree *t, const struct folder *folder, const char *name)
{
	return &t->table[hash(folder, name) & (t->table_size - 1)];
}

int table_grow(struct tree *t)
{
	struct item **old = t->table, *item, *next;
	size_t size = t->table_size, i;

	if (t->item_count < size)
		return 0;
	t->table_size = size ? size * 4 : 1024;
	t->table = calloc(t->table_size, sizeof(*t->table));
	if (!t->table) {
		t->table = old;
		t->table_size = size;
		return ENOMEM;
	}
	for (i = 0; i < size; i++) {
		for (item = old[i]; item; item = next) {
			struct item **b = bucket(t, item->in, item->name);

			next = item->chain;
			item->chain = *b;
			*b = item;
		}
	}
	free(old);
	return 0;
}

struct item *item_find(struct tree *t, struct folder *folder, const char *name)
{
	struct item *item;

	for (item = *bucket(t, folder, name); item; item = item->chain)
		if (item->in == folder && !strcmp(item->name, name))
			return item;
	return NULL;
}

struct item *item_new(struct tree *t, struct folder *folder, const char *name)
{
	struct item *item, **b;
	size_t size = strlen(name) + 1;

	if (table_grow(t))
		return NULL;
	item = calloc(1, sizeof(*item) + size);
	if (!item)
		return NULL;
	memcpy(item->name, name, size);
	item->in = folder;
	item->next = folder->items;
	item->link = &folder->items;
	if (item->next)
		item->next->link = &item->next;
	folder->items = item;
	b = bucket(t, folder, name);
	item->chain = *b;
	*b = item;
	t->item_count++;
	return item;
}

void item_free(struct tree *t, struct item *item)
{
	struct item **b = bucket(t, item->in, item->name);

	while (*b != item)
		b = &(*b)->chain;
	*b = item->chain;
	*item->link = item->next;
	if (item->next)
		item->next->link = item->link;
	t->item_count--;
	free(item->target);
	free(item);
}

struct folder *folder_new(struct tree *t, struct item *self)
{
	struct folder *folder;

	if (t->folder_count == FOLDERS_MAX)
		return NULL;
	folder = calloc(1, sizeof(*folder));
	if (!folder)
		return NULL;
	folder->self = self;
	folder->watch = folder->metadata_watch = -1;
	folder->next = t->folders;
	folder->link = &t->folders;
	if (folder->next)
		folder->next->link = &folder->next;
	t->folders = folder;
	t->folder_count++;
	t->unwatched++;
	return folder;
}

static void folder_free(struct tree *t, struct folder *folder)
{
	unwatch_folder(t, folder);
	t->unwatched--;
	if (folder->slot)
		t->todo[folder->slot - 1] = NULL;
	*folder->link = folder->next;
	if (folder->next)
		folder->next->link = folder->link;
	t->folder_count--;
	free(folder);
}

/* A folder and all below it, without recursion: guests make folders as deep as they like. */
void folder_forget(struct tree *t, struct folder *top)
{
	struct folder *folder = top;

	for (;;) {
		struct item *item = folder->items;

		if (item && item->child) {
			folder = item->child;
		} else if (item) {
			item_free(t, item);
		} else {
			struct item *self = folder->self;
			bool last = folder == top;

			folder_free(t, folder);
			if (last)
				return;
			folder = self->in;
			item_free(t, self);
		}
	}
}
